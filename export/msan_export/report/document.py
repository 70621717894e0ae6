"""A report as JSON for programs: every figure, and no picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from msan_export.acceptance.verdict import Check, Exhibit, PairScores, ParityReport, Settings
from msan_runtime.strictjson import strict_json

__all__ = ["PARITY_SCHEMA_VERSION", "parity_json"]

PARITY_SCHEMA_VERSION = 2

PICTURES = ("blurred", "expected", "given")


def parity_json(report: ParityReport) -> str:
    """The report as JSON, as ``schemas/parity-2.schema.json`` says; infinite PSNR is ``"inf"``, not-a-number ``"nan"``.

    Names that are not Unicode, as file systems allow, keep their bytes as ``\\udcXX``.
    """
    body = {
        "schema_version": PARITY_SCHEMA_VERSION,
        "passed": report.passed,
        "settings": _settings(report.settings),
        "checks": [_check(check) for check in report.checks],
        "pairs": [_pairs(scores) for scores in report.pairs],
        "worst": [_exhibit(exhibit) for exhibit in report.worst],
    }
    return strict_json(body).encode("utf-8", "backslashreplace").decode()


def _settings(settings: Settings) -> dict[str, Any]:
    return _fields(settings) | {"thresholds": _fields(settings.thresholds)}


def _check(check: Check) -> dict[str, Any]:
    return _fields(check)


def _exhibit(exhibit: Exhibit) -> dict[str, Any]:
    height, width = exhibit.expected.shape[:2]
    told = {name: value for name, value in _fields(exhibit).items() if name not in PICTURES}
    return told | {"height_px": height, "width_px": width}


def _pairs(scores: PairScores) -> dict[str, Any]:
    change = {metric: _fields(interval) for metric, interval in scores.change.items()}
    return _fields(scores) | {"change": change}


def _fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, thresholds and mappings in it as plain dictionaries."""
    return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
