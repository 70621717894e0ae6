"""The ``msan`` command: its root, and the one place that turns errors into messages."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from msan_runtime.commands.bench import bench
from msan_runtime.commands.cache import cache_app
from msan_runtime.commands.deblur import deblur
from msan_runtime.commands.doctor import doctor
from msan_runtime.commands.package import package
from msan_runtime.commands.screen import GroupedCommand, errors, printable
from msan_runtime.commands.serve import serve
from msan_runtime.commands.signing import sign, verify_signature
from msan_runtime.errors import MissingExtraError, MsanError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Motion deblurring with MSAN: export a checkpoint, verify the conversion, deblur pictures.",
)

EXTRA_OF_PACKAGE = {
    "onnxruntime": "cpu",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
    "cuda": "rtx",
    "openvino": "openvino",
    "av": "video",
    "cryptography": "sign",
    "ray": "ray",
    "fsspec": "ray",
}
EXTRA_OF_COMMAND = {
    "train": "train",
    "blur": "train",
    "curves": "train",
    "evaluate": "train",
    "calibrate": "calib",
}
HEAVY_PACKAGES = frozenset(
    {"torch", "safetensors", "onnx", "onnxscript", "polygraphy", "google", "jinja2", "markupsafe"}
)


def main() -> None:
    """Run the command line. Exit code 2 for bad input, 1 for a failed check, 0 otherwise."""
    for room in ("msan_runtime", "msan_calib"):
        logging.getLogger(room).addHandler(_NoteHandler())
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


app.command("deblur", cls=GroupedCommand)(deblur)
app.command("bench", cls=GroupedCommand)(bench)
app.command("doctor", cls=GroupedCommand)(doctor)
app.command("package", cls=GroupedCommand)(package)
app.command("serve", cls=GroupedCommand)(serve)
app.command("sign", cls=GroupedCommand)(sign)
app.command("verify-signature", cls=GroupedCommand)(verify_signature)
app.add_typer(cache_app, name="cache")


class _NoteHandler(logging.Handler):
    """Prints what the library logs, for example why a faster backend is not used."""

    def emit(self, record: logging.LogRecord) -> None:
        serious = record.levelno >= logging.ERROR
        word, style = ("warning", "bold yellow") if serious else ("note", "dim")
        errors.print(f"{word}: {printable(record.getMessage())}", style=style)


def _fail(message: str, exit_code: int) -> None:
    errors.print(f"error: {printable(message)}", style="red")
    sys.exit(exit_code)
