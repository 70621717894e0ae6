"""The ``msan`` command: its root, ``msan deblur``, and the one place that turns errors into messages."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msan_runtime.errors import MissingExtraError, MsanError, PictureError

__all__ = ["app", "errors", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Motion deblurring with MSAN: export a checkpoint, verify the conversion, deblur pictures.",
)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

EXTRA_OF_PACKAGE = {"onnxruntime": "cpu", "tensorrt_rtx": "rtx", "tensorrt": "tensorrt", "cuda": "rtx"}
EXTRA_OF_COMMAND = {
    "train": "train",
    "blur": "train",
    "curves": "train",
    "evaluate": "train",
    "calibrate": "calib",
}
HEAVY_PACKAGES = frozenset({"torch", "safetensors", "onnx", "onnxscript", "polygraphy", "google"})


def main() -> None:
    """Run the command line. Exit code 2 for bad input, 1 for a failed check, 0 otherwise."""
    logging.getLogger("msan_runtime").addHandler(_NoteHandler())
    for entry_point in entry_points(group="msan.commands"):
        entry_point.load()(app)
    try:
        app()
    except MsanError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF_PACKAGE and package not in HEAVY_PACKAGES:
            raise
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        extra = EXTRA_OF_PACKAGE.get(package) or EXTRA_OF_COMMAND.get(command, "export")
        _fail(str(MissingExtraError(package, extra)), 2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"cannot read or write{where}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"msan {version('msan')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def deblur(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files (JPEG, PNG, WebP, TIFF) or folders of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results, or a file for one picture.")],
    bundle: Annotated[str, typer.Option(help="A bundle's folder, or the name of a shipped one.")] = "msan-s",
    backend: Annotated[str, typer.Option(help="auto, rtx, tensorrt, ort-cuda or ort-cpu.")] = "auto",
    compare: Annotated[bool, typer.Option("--compare", help="Also write labelled before/after pictures.")] = False,
) -> None:
    """Deblur pictures. Bad files are reported and the others done.

    Exit code: 0 all done, 1 some files failed, 2 none could be done.
    """
    from msan_runtime.batch import deblur_files, plan_jobs
    from msan_runtime.deblur import Deblurrer

    jobs = plan_jobs(pictures, output, compare=compare)
    _check_folder(output.parent if len(jobs) == 1 and jobs[0].target == output else output)
    failed = 0
    with Deblurrer.load(bundle, backend) as deblurrer, _progress() as progress:
        task = progress.add_task(f"deblurring on {deblurrer.backend.name}", total=len(jobs))
        for outcome in deblur_files(deblurrer, jobs, compare=compare):
            if outcome.error is not None:
                failed += 1
                progress.console.print(f"error: {outcome.error}", style="red", markup=False)
            progress.advance(task)
    typer.echo(f"{len(jobs) - failed} of {len(jobs)} pictures deblurred to {output}")
    if failed:
        raise typer.Exit(2 if failed == len(jobs) else 1)


def _check_folder(folder: Path) -> None:
    """Make the output folder now, so that a bad path fails before the work and not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureError(f"cannot write to {folder}: {error.strerror}. Choose another -o") from error


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=errors)


class _NoteHandler(logging.Handler):
    """Prints what the library logs, for example why a faster backend is not used."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(f"note: {record.getMessage()}", style="dim")


def _fail(message: str, exit_code: int) -> None:
    errors.print(f"error: {message}", style="red")
    sys.exit(exit_code)
