"""``msan bench``: how fast a bundle is here, beside what else could run the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from msan_runtime.commands.screen import errors
from msan_runtime.commands.values import size_from_text
from msan_runtime.errors import MsanError

if TYPE_CHECKING:
    from msan_runtime.bench.session import BenchOptions, BenchResult

__all__ = ["bench"]

WHAT, OUTPUTS = "What is measured", "Outputs"
PIPE_COLUMNS = 140
"""Where nobody's window sets a width, no table is folded."""


def bench(
    bundle: Annotated[
        str, typer.Option(help="A bundle's folder, or the name of a shipped one.", rich_help_panel=WHAT)
    ] = "msan-s",
    sizes: Annotated[
        str, typer.Option(help="HEIGHTxWIDTH in pixels, comma-separated, multiples of 8.", rich_help_panel=WHAT)
    ] = "360x640",
    backend: Annotated[
        str, typer.Option(help="Backends, comma-separated. Default: all that run here.", rich_help_panel=WHAT)
    ] = "",
    against: Annotated[
        str,
        typer.Option(
            help="pytorch, pytorch-channels-last, onnxruntime, openvino; none. Default: all installed.",
            rich_help_panel=WHAT,
        ),
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="For PyTorch. Default: the shipped one, or untrained weights.", rich_help_panel=WHAT),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each, in turns.", rich_help_panel=WHAT)] = 15,
    memory: Annotated[
        bool,
        typer.Option("--memory/--no-memory", help="Peak memory of each, in a fresh process.", rich_help_panel=WHAT),
    ] = True,
    count: Annotated[
        int, typer.Option(min=0, help="Made-up pictures in the folder run; 0 for none.", rich_help_panel=WHAT)
    ] = 20,
    pictures: Annotated[
        Path | None, typer.Option(help="Only a folder run, on these pictures.", rich_help_panel=WHAT)
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write all figures.", rich_help_panel=OUTPUTS)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw them: a .png.", rich_help_panel=OUTPUTS)
    ] = None,
) -> None:
    """Time a bundle on this machine beside PyTorch and the bare libraries, in turns (docs/bench.md).

    Exit code: 0 measured, 2 bad input.
    """
    from msan_runtime.atomic import write_text
    from msan_runtime.bench.session import BenchOptions
    from msan_runtime.strictjson import strict_json

    _check_outputs(json, plot, pictures)
    options = BenchOptions(
        bundle=bundle,
        sizes=tuple(size_from_text(text) for text in sizes.split(",")),
        backends=_names(backend),
        against=_names(against),
        checkpoint=checkpoint,
        rounds=rounds,
        memory=memory,
        count=count,
        pictures=pictures,
    )
    result = _run(options)
    _print(result)
    if json is not None:
        write_text(json, strict_json(result.to_dict()))
    if plot is not None:
        from msan_runtime.bench.plot import save_plot
        from msan_runtime.machine import processor_name

        save_plot(result.sizes, plot, f"{result.setup.bundle.manifest.name} on {processor_name()}")


def _names(text: str) -> tuple[str, ...] | None:
    """The names in a comma-separated list; ``None`` for an empty one, none of them for ``none``."""
    if text.strip() == "none":
        return ()
    return tuple(name.strip() for name in text.split(",")) if text.strip() else None


def _check_outputs(json: Path | None, plot: Path | None, pictures: Path | None) -> None:
    """Refuse before a long run what could not be written after it."""
    for path in (json, plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
            raise MsanError(f"cannot write {path}: give the name of a file in a folder that is there")
    if plot is None:
        return
    from msan_runtime.bench.plot import require_matplotlib

    require_matplotlib()
    if plot.suffix.lower() != ".png":
        raise MsanError(f"cannot write {plot}: the name must end in .png")
    if pictures is not None:
        raise MsanError("--plot draws latencies, and --pictures measures none. Leave one of them out")


def _run(options: BenchOptions) -> BenchResult:
    """Measure under a progress bar."""
    from msan_runtime.bench.session import Listener, run_bench

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        tasks: list[TaskID] = []

        class Bars(Listener):
            def begin(self, what: str, steps: int) -> None:
                tasks.append(progress.add_task(what, total=steps))

            def advance(self) -> None:
                progress.advance(tasks[-1])

        return run_bench(options, Bars())


def _print(result: BenchResult) -> None:
    from msan_runtime.bench.report import folder_lines, latency_table, ratio_table

    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    screen = Console(width=width, highlight=False, emoji=False, markup=False)
    for size in result.sizes:
        for table in (latency_table(size), ratio_table(size)):
            if table is not None:
                screen.print(table)
        screen.print(
            f"the peak is a matrix multiplication's, {size.peak_flops_per_second / 1e9:.0f} GFLOP/s in FP32 on the "
            f"CPU; on a GPU it is not measured. {result.setup.threads} threads each",
            soft_wrap=True,
        )
    for name, times in result.folders.items():
        for line in folder_lines(times, name):
            screen.print(line, soft_wrap=True)
