"""What a benchmark's figures depend on besides the code: machine, versions, date."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["describe_machine"]


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, GPU if PyTorch sees one, cores, system, versions of ``packages``, and the date."""
    return {
        "processor": _processor(),
        "gpu": _gpu() if "torch" in packages else None,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {name: version(name) for name in packages},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
