"""``msan train``: train a network; the same command goes on where it stopped."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

__all__ = ["train"]

screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def train(
    pictures: Annotated[Path, typer.Argument(help="Folder of sharp pictures.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; an unfinished run there goes on.")],
    network: Annotated[str, typer.Option(help="msan or msan-s.")] = "msan-s",
    attention: Annotated[bool, typer.Option(help="Self-attention modules (without: the paper's M1 and M2).")] = True,
    loss: Annotated[Literal["bce", "mse"], typer.Option(help="Binary cross-entropy (Eq. 9) or squared error.")] = "bce",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 7000,
    batch: Annotated[int, typer.Option(help="Crops a step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of the crops in pixels, a multiple of 8.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="After warm-up; then cosine annealing to 1e-6.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights, crops and blur.")] = 1414,
) -> None:
    """Train on synthetic motion blur. Stop at any time: the same command goes on."""
    from msan.datasets import picture_files
    from msan.spec import spec_named
    from msan.train import TrainConfig
    from msan.train import train as run

    config = TrainConfig(
        spec=replace(spec_named(network), attention=attention),
        loss=loss,
        steps=steps,
        batch=batch,
        crop_px=crop,
        learning_rate=learning_rate,
        seed=seed,
    )
    files = picture_files(pictures)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _interrupts() as interrupts, Progress(*columns, console=errors) as progress:
        task = progress.add_task("training", total=steps)
        path = run(
            files,
            output,
            config,
            on_progress=lambda p: progress.update(task, completed=p.step, description=f"loss {p.loss:.4f}"),
            should_stop=lambda: bool(interrupts),
        )
    screen.print(f"{path}: {config.spec.name}, {steps} steps", soft_wrap=True)


@contextmanager
def _interrupts() -> Generator[list[int]]:
    """Collects the first Ctrl-C, so that a step is finished and saved; the second one ends at once."""
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
