"""``msan train``: train a network; the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

if TYPE_CHECKING:
    from msan.training.recipe import TrainConfig
    from msan.training.train import Progress, TrainResult

__all__ = ["train"]

screen = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

Flag = bool | None
LossOption = Literal["bce", "mse"]
AmpOption = Literal["off", "bf16", "fp16"]
LayoutOption = Literal["gopro", "gopro-gamma", "hide", "realblur-j", "realblur-r", "pairs"]
CacheOption = Literal["auto", "memory", "off"]


def train(
    context: typer.Context,
    data: Annotated[
        list[Path],
        typer.Argument(help="Folders of pairs (GoPro, HIDE, RealBlur, input/target) and of sharp pictures to blur."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; an unfinished run there goes on.")],
    recipe: Annotated[str, typer.Option(help="TOML file, or a shipped one: paper, msan-s, msan-gpu.")] = "paper",
    network: Annotated[str | None, typer.Option(help="msan or msan-s.")] = None,
    attention: Annotated[Flag, typer.Option(help="Self-attention modules (without: the paper's M1 and M2).")] = None,
    init: Annotated[str | None, typer.Option(help="Checkpoint to start from: a file or a shipped name.")] = None,
    loss: Annotated[LossOption | None, typer.Option(help="Binary cross-entropy (Eq. 9) or squared error.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the pictures.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, in place of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(help="Crops a step and process.")] = None,
    crop_px: Annotated[int | None, typer.Option("--crop", help="Side of the crops, px, a multiple of 8.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="After warm-up; then cosine annealing.")] = None,
    learning_rate_end: Annotated[float | None, typer.Option(help="At the last step.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of linear warm-up.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Bound on the gradient's norm; 0: none.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of the weights' moving average; 0: none.")] = None,
    amp: Annotated[AmpOption | None, typer.Option(help="Automatic mixed precision.")] = None,
    channels_last: Annotated[Flag, typer.Option(help="Memory layout of the convolutions.")] = None,
    torch_compile: Annotated[Flag, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, crops and blur.")] = None,
    layout: Annotated[LayoutOption | None, typer.Option(help="Of pairs; recognised if left out.")] = None,
    pair_share: Annotated[float | None, typer.Option(help="Share of real pairs among the samples.")] = None,
    held_back: Annotated[int | None, typer.Option(help="Keep every n-th picture for validation; 0: none.")] = None,
    validate: Annotated[Path | None, typer.Option(help="Validate on this folder instead.")] = None,
    validate_every: Annotated[int | None, typer.Option(help="Steps between validations.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 200,
    report_every: Annotated[int, typer.Option(min=1, help="Steps between log lines.")] = 20,
    cache: Annotated[CacheOption, typer.Option(help="Decoded pictures in memory.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that prepare samples.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over pictures that cannot be decoded.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU where there is one.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Write scalars and pictures for TensorBoard.")] = True,
) -> None:
    """Train on real pairs, synthetic motion blur, or both. Stop at any time: the same command goes on.

    The default recipe is the paper's, on the full network; a TOML file sets what has no option here.
    Under torchrun, processes share each step.
    """
    from msan.data.loader import DataOptions
    from msan.training.distributed import TeamError, join_team
    from msan.training.train import TrainError, TrainOptions, TrainStoppedError
    from msan.training.train import train as run

    config = _config(recipe, context.params)
    with join_team(device) as team, _interrupts() as interrupts, _bar(shown=team.leads) as bar:
        options = TrainOptions(
            data=DataOptions(cache=cache, workers=workers, announce=_say if team.leads else _say_nothing),
            validate=validate,
            skip_bad=skip_bad,
            report_every=report_every,
            save_every=save_every,
            tensorboard=tensorboard,
            on_progress=_advancing(bar),
            should_stop=lambda: bool(interrupts),
        )
        try:
            result = run(data, output, config, team, options)
        except (TeamError, TrainError, TrainStoppedError) as error:
            if team.leads:
                raise
            # The leader says it.
            raise typer.Exit(error.exit_code) from error
    if team.leads:
        _print_result(result, config)


def _config(recipe: str, given: Mapping[str, Any]) -> TrainConfig:
    """The recipe, with the options that were given in place of its own values."""
    from msan.spec import spec_named
    from msan.training.recipe import load_recipe

    config = load_recipe(recipe)
    names = {field.name for field in dataclasses.fields(config)}
    changes = {name: value for name, value in given.items() if name in names and value is not None}
    spec = config.spec if given["network"] is None else spec_named(given["network"])
    if given["attention"] is not None:
        spec = dataclasses.replace(spec, attention=given["attention"])
    if given["epochs"] is not None and given["steps"] is None:
        changes["steps"] = None
    return dataclasses.replace(config, spec=spec, **changes)


def _bar(*, shown: bool) -> ProgressBar:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return ProgressBar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=errors, disable=not shown)


def _advancing(bar: ProgressBar) -> Callable[[Progress], None]:
    task = bar.add_task("training", total=None)

    def advance(p: Progress) -> None:
        words = f"loss {p.loss:.5f}, {p.images_per_s:.1f} images/s"
        bar.update(task, completed=p.step, total=p.steps, description=words)

    return advance


def _print_result(result: TrainResult, config: TrainConfig) -> None:
    if result.bad:
        screen.print(f"{len(result.bad)} pictures could not be decoded and were skipped", soft_wrap=True)
    if result.best is not None:
        screen.print(f"{result.best}: {config.spec.name}, best on the validation pictures", soft_wrap=True)
    screen.print(f"{result.last}: {config.spec.name}, last step", soft_wrap=True)


def _say(text: str) -> None:
    errors.print(text, soft_wrap=True)


def _say_nothing(text: str) -> None:
    del text


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
