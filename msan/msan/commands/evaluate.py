"""``msan evaluate``: measure a network on pictures whose sharp version is known."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from msan_runtime.errors import MsanError

if TYPE_CHECKING:
    from msan.evaluate import Evaluation
    from msan_runtime.contract import PictureArray

__all__ = ["evaluate"]

screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


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
