"""The verdict of a verification: a table for people, JSON for programs."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from msan_export.parity import Check, ParityReport
from msan_runtime.strictjson import strict_json

__all__ = ["PARITY_SCHEMA_VERSION", "parity_json", "parity_notes", "parity_table"]

PARITY_SCHEMA_VERSION = 1


def parity_table(report: ParityReport) -> Table:
    """A group for each file, a row for each check: figures beside their bounds."""
    table = Table(box=None, padding=(0, 1, 0, 0), title=f"{report.bundle} against PyTorch FP32", title_justify="left")
    for header in ("compared", "picture", "max difference", "PSNR dB", ""):
        table.add_column(header, no_wrap=True)
    subjects = list(dict.fromkeys(check.subject for check in report.checks))
    for subject in subjects:
        table.add_row(f"[bold]{subject}[/bold]")
        for check in (check for check in report.checks if check.subject == subject):
            table.add_row(f"  {check.quantity}", check.case, *_figures(check), _verdict(check))
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
    limit = f"{bound.max_difference:.0e}" if bound.max_difference < 1e-2 else f"{bound.max_difference:g} levels"
    return f"{check.max_difference:.2g} (≤ {limit})", f"{check.psnr_db:.1f} (≥ {bound.psnr_db:g})"


def _verdict(check: Check) -> str:
    return "not run" if check.passed is None else "pass" if check.passed else "FAIL"
