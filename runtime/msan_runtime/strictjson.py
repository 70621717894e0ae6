"""Strict JSON text: infinities and not-a-number, which JSON does not have, become strings."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["strict_json"]


def strict_json(body: Any) -> str:
    """``body`` as indented JSON that any reader takes; ``inf``, ``-inf`` and ``nan`` become strings."""
    return json.dumps(_finite(body), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
