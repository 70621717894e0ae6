"""The commands of the PyTorch room, registered on the root app."""

from __future__ import annotations

import typer

from msan.commands.blur import blur
from msan.commands.curves import curves
from msan.commands.evaluate import evaluate
from msan.commands.train import train

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this room's commands to the root app."""
    app.command("train")(train)
    app.command("blur")(blur)
    app.command("curves")(curves)
    app.command("evaluate")(evaluate)
