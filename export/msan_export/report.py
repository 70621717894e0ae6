"""The verdict of a verification: a table for people, JSON for programs."""

from __future__ import annotations

import dataclasses

from rich.console import Group
from rich.table import Table
from rich.text import Text

from msan_export.verdict import Check, ParityReport
from msan_runtime.strictjson import strict_json

__all__ = ["PARITY_SCHEMA_VERSION", "parity_json", "parity_notes", "parity_table"]

PARITY_SCHEMA_VERSION = 1
COLUMN_WIDTHS = (10, 24, 17, 14, 8)


def parity_table(report: ParityReport) -> Group:
    """A group of rows for each file, a row for each check: figures beside their bounds. 78 columns wide."""
    subjects = list(dict.fromkeys(check.subject for check in report.checks))
    groups = [_rows(subject, [check for check in report.checks if check.subject == subject]) for subject in subjects]
    return Group(
        Text(f"{report.bundle} against PyTorch FP32", style="italic"),
        *groups,
        Text("Differences in grey levels; of FP32 graphs before rounding (float), in [0, 1]."),
    )


def _rows(subject: str, checks: list[Check]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), title=subject, title_justify="left", title_style="bold")
    headers = ("compared", "picture", "max difference", "PSNR dB", "")
    for header, width in zip(headers, COLUMN_WIDTHS, strict=True):
        table.add_column(header, width=width, no_wrap=True)
    table.show_header = any(check.psnr_db is not None for check in checks)
    for check in checks:
        table.add_row(check.quantity, check.case, *_figures(check), _verdict(check))
    return table


def parity_notes(report: ParityReport) -> list[str]:
    """A line for each check that failed or was not run, with the reason."""
    noted = [check for check in report.checks if check.detail and check.passed is not True]
    return [f"{_verdict(check)}: {check.subject}, {check.quantity}: {check.detail}" for check in noted]


def parity_json(report: ParityReport) -> str:
    """The report as JSON (``schema_version`` 1); infinite PSNR is ``"inf"``, not-a-number ``"nan"``."""
    body = {"schema_version": PARITY_SCHEMA_VERSION, "passed": report.passed, **dataclasses.asdict(report)}
    return strict_json(body)


def _figures(check: Check) -> tuple[str, str]:
    if check.psnr_db is None or check.max_difference is None or check.threshold is None:
        return "", ""
    bound = check.threshold
    limit = f"{bound.max_difference:.0e}" if bound.max_difference < 1e-2 else f"{bound.max_difference:g}"
    return f"{check.max_difference:.2g} (≤ {limit})", f"{check.psnr_db:.1f} (≥ {bound.psnr_db:g})"


def _verdict(check: Check) -> str:
    return "not run" if check.passed is None else "pass" if check.passed else "FAIL"
