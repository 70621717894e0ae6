"""``msan evaluate``: measure a network, or another's results, on pictures whose sharp version is known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msan_runtime.errors import MsanError

if TYPE_CHECKING:
    from msan.evaluation.evaluate import Evaluation, OnPicture, PictureScore, SsimName
    from msan.evaluation.methods import Method
    from msan.evaluation.sets import EvaluationSet, MeasuredPair, OnBad
    from msan.evaluation.sheet import Extremes
    from msan_runtime.contract import PictureArray

__all__ = ["evaluate"]

screen = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

PIPE_COLUMNS = 160
"""Where nobody's window sets a width, no table is folded."""

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="Checkpoint (file or shipped name), ONNX file, bundle, or folder of another network's pictures."
    ),
]
DataArgument = Annotated[
    list[Path],
    typer.Argument(help="Data sets of pairs; a folder of plain pictures is blurred with the fixed blur set."),
]
LayoutOption = Annotated[
    Literal["gopro", "gopro-gamma", "hide", "realblur-j", "realblur-r", "pairs", "blur-set"] | None,
    typer.Option(help="Layout of the data (default: recognised)."),
]
SsimChoice = Literal["both", "matlab3d", "skimage", "none"]

SSIM: Mapping[SsimChoice, Sequence[SsimName]] = {
    "both": ("matlab3d", "skimage"),
    "matlab3d": ("matlab3d",),
    "skimage": ("skimage",),
    "none": (),
}
SsimOption = Annotated[
    SsimChoice,
    typer.Option(help="matlab3d is the one of the GoPro and HIDE tables; it takes about a second a picture."),
]


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    layout: LayoutOption = None,
    split: Annotated[Literal["test", "train"], typer.Option(help="Part of the data set.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only the first so many of each set.")] = None,
    ssim: SsimOption = "both",
    backend: Annotated[
        str, typer.Option(help="auto; torch-cuda, torch-cpu; rtx, tensorrt, ort-cuda, ort-cpu.")
    ] = "auto",
    attention: Annotated[
        str | None,
        typer.Option(
            help="Of a checkpoint: global, window (384, the default) or window:SIZE in pixels. Bundles have their own."
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be measured.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write all scores here.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write a line for each picture here.")] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Also draw the best and the worst pictures.")] = None,
    sheet_rows: Annotated[int, typer.Option(min=1, help="Best and worst pictures on the sheet, of each set.")] = 4,
) -> None:
    """Measure PSNR, SSIM and time, and print them as papers do (docs/evaluation.md).

    Exit code: 0 measured, 2 bad input.
    """
    from msan.evaluation.files import save_csv, save_json
    from msan.evaluation.methods import open_method
    from msan.evaluation.sets import find_evaluation_sets
    from msan.evaluation.sheet import Extremes, save_sheet

    _check_outputs(json, csv, sheet)
    sets = find_evaluation_sets(data, layout=layout, split=split, limit=limit)
    extremes = [Extremes(chosen.name, sheet_rows) if sheet is not None else None for chosen in sets]
    with open_method(model, sets, backend=backend, attention=attention) as method:
        _announce(method, sets)
        evaluations = _measure(sets, method, SSIM[ssim], extremes, skip_bad=skip_bad)
    if json is not None:
        save_json(json, method, evaluations)
    if csv is not None:
        save_csv(csv, evaluations)
    if sheet is not None:
        save_sheet(sheet, [kept for kept in extremes if kept is not None], method.label)
    _print_scores(method, evaluations)


def _check_outputs(json: Path | None, csv: Path | None, sheet: Path | None) -> None:
    """Refuse what could not be written after a long run."""
    from msan_runtime.image import FORMATS

    targets = [path for path in (json, csv, sheet) if path is not None]
    for path in targets:
        if path.is_dir():
            raise MsanError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise MsanError(f"cannot write {path}: there is no folder {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise MsanError(f"cannot write {path}: the folder is read-only")
    if len({path.resolve() for path in targets}) < len(targets):
        raise MsanError(f"{targets[-1]} would be written twice. Give each output its own file")
    if sheet is not None and sheet.suffix.lower() not in FORMATS:
        raise MsanError(f"cannot write {sheet}: the name must end in {', '.join(sorted(FORMATS))}")


def _announce(method: Method, sets: Sequence[EvaluationSet]) -> None:
    if method.kind == "results":
        _note(f"{method.source}: pictures that another network made")
    else:
        _note(f"{method.source}: {method.kind} on {method.backend} ({method.device}), {method.attention} attention")
    for note in method.notes:
        _note(note)
    for chosen in sets:
        found = len(chosen.all_files)
        count = f"{len(chosen.files)} of {found}" if chosen.limit else f"{found}"
        if chosen.layout == "blur-set":
            _note(f"{chosen.name}: {count} sharp pictures, blurred with the fixed blur set")
        else:
            part = f", {chosen.split}" if chosen.split else ""
            _note(f"{chosen.name}: {count} pairs (layout {chosen.layout}{part})")


def _measure(
    sets: Sequence[EvaluationSet],
    method: Method,
    ssim: Sequence[SsimName],
    extremes: Sequence[Extremes | None],
    *,
    skip_bad: bool,
) -> list[Evaluation]:
    """Evaluate each set under a progress bar, keeping the extremes for the sheet if one is wanted."""
    from msan.evaluation.evaluate import evaluate as run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    evaluations: list[Evaluation] = []
    with Progress(*columns, console=errors) as progress:
        for chosen, keep in zip(sets, extremes, strict=True):
            on_picture, on_skipped = _callbacks(progress, chosen, keep)
            evaluations.append(
                run(chosen, method, ssim=ssim, skip_bad=skip_bad, on_picture=on_picture, on_skipped=on_skipped)
            )
    return evaluations


def _callbacks(progress: Progress, chosen: EvaluationSet, keep: Extremes | None) -> tuple[OnPicture, OnBad]:
    task = progress.add_task(chosen.name, total=len(chosen.files))

    def on_picture(score: PictureScore, pair: MeasuredPair, deblurred: PictureArray) -> None:
        progress.advance(task)
        if keep is not None:
            keep.add(score, pair, deblurred)

    def on_skipped(name: str, reason: str) -> None:
        progress.advance(task)
        progress.console.print(f"skipped: {name}: {reason}", style="yellow", soft_wrap=True, markup=False)

    return on_picture, on_skipped


def _print_scores(method: Method, evaluations: Sequence[Evaluation]) -> None:
    from msan.evaluation.tables import score_notes, score_tables

    for table in score_tables(method, evaluations):
        screen.print(table, width=None if screen.is_terminal else PIPE_COLUMNS)
    for note in score_notes(method, evaluations):
        screen.print(note, soft_wrap=True, markup=False)


def _note(line: str) -> None:
    errors.print(f"note: {line}", style="dim", soft_wrap=True, markup=False)
