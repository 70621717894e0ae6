"""``msan curves``: draw the curves of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["curves"]

screen = Console(highlight=False, emoji=False)


def curves(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="PNG file; curves.png in the run's folder if left out.")
    ] = None,
) -> None:
    """Draw loss, learning rate and validation PSNR of a training run, finished or not."""
    from msan.training.curves import save_curves

    path = output or run / "curves.png"
    save_curves(run, path)
    screen.print(str(path), soft_wrap=True, markup=False, emoji=False)
