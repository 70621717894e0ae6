"""The commands of the export room, registered on the root app."""

from __future__ import annotations

import typer

from msan_export.commands.build import build
from msan_export.commands.deploy import deploy
from msan_export.commands.export import export
from msan_export.commands.inspect import inspect
from msan_export.commands.report import report
from msan_export.commands.reproduce import reproduce
from msan_export.commands.verify import verify

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this room's commands to the root app."""
    app.command("export")(export)
    app.command("build")(build)
    app.command("verify")(verify)
    app.command("deploy")(deploy)
    app.command("inspect")(inspect)
    app.command("reproduce")(reproduce)
    app.command("report")(report)
