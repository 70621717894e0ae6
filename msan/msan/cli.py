"""The commands of the PyTorch room: ``msan train`` and ``msan evaluate``."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from msan_runtime.errors import MsanError

if TYPE_CHECKING:
    from msan.evaluate import Evaluation
    from msan_runtime.contract import PictureArray

__all__ = ["register"]

screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add this room's commands to the root app."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)


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


def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint (file or shipped name), or a bundle's folder.")],
    pictures: Annotated[Path, typer.Argument(help="Folder of sharp pictures, blurred with the fixed blur set.")],
    json: Annotated[Path | None, typer.Option("--json", help="Also write the scores here.")] = None,
) -> None:
    """Measure PSNR over the blurred input on the fixed blur set (docs/blur-set.md)."""
    from msan.blurset import fixed_blur_set
    from msan.datasets import picture_files
    from msan.evaluate import evaluate as run
    from msan.evaluate import save_scores

    files = picture_files(pictures)
    if json is not None and not json.parent.is_dir():
        raise MsanError(f"cannot write {json}: there is no folder {json.parent}")
    with _deblurring(model) as deblur, Progress(TextColumn("evaluating"), BarColumn(), console=errors) as progress:
        task = progress.add_task("", total=len(files))
        result = run(fixed_blur_set(files), deblur, on_score=lambda _: progress.advance(task))
    _print_scores(result)
    if json is not None:
        save_scores(result, json, model)


@contextmanager
def _deblurring(model: str) -> Generator[Callable[[PictureArray], PictureArray]]:
    """What deblurs a picture: a bundle in the runtime, or a checkpoint in PyTorch."""
    from msan.checkpoint import find_checkpoint, load_checkpoint, network_from_checkpoint
    from msan.evaluate import deblur_with_network
    from msan_runtime import Deblurrer

    if Path(model).is_dir():
        with Deblurrer.load(model) as deblurrer:
            yield deblurrer.deblur
    else:
        network = network_from_checkpoint(load_checkpoint(find_checkpoint(model)))
        yield lambda picture: deblur_with_network(network, picture)


def _print_scores(result: Evaluation) -> None:
    table = Table("picture", "path px", "blurred dB", "deblurred dB", "gain dB")
    for s in result.scores:
        table.add_row(s.name, f"{s.length_px:.1f}", f"{s.blurred_db:.2f}", f"{s.deblurred_db:.2f}", f"{s.gain_db:+.2f}")
    table.add_section()
    table.add_row("mean", "", f"{result.blurred_db:.2f}", f"{result.deblurred_db:.2f}", f"{result.gain_db:+.2f}")
    screen.print(table)
    screen.print(f"{result.worse} of {len(result.scores)} pictures worse than their blurred input")
