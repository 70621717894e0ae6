"""What the commands share: options, the screen, and a progress line."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from msan_runtime.errors import MsanError
from msan_runtime.targets import capabilities_named

if TYPE_CHECKING:
    from msan_export.acceptance.verdict import ParityReport
    from msan_export.engine import EngineSpec, Flavour, OnPhase

__all__ = [
    "ArchOption",
    "AttentionOption",
    "CheckpointArgument",
    "FlavourOption",
    "GpuOption",
    "LoaderOption",
    "MaxOption",
    "MinOption",
    "OptOption",
    "PicturesOption",
    "engine_spec",
    "errors",
    "phases",
    "print_verdict",
    "say",
    "screen",
    "writing",
]

screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

CheckpointArgument = Annotated[str, typer.Argument(help="Checkpoint file, or a shipped name (msan-s).", metavar="CKPT")]
GpuOption = Annotated[str, typer.Option("--gpu", help="GPUs, comma-separated (names: msan build --gpu list).")]
FlavourOption = Annotated[Literal["tensorrt-rtx", "tensorrt"], typer.Option(help="Which TensorRT builds the engine.")]
MinOption = Annotated[str | None, typer.Option("--min", help="Smallest tile, HEIGHTxWIDTH (default: 8x8).")]
OptOption = Annotated[
    str | None, typer.Option("--opt", help="Typical tile, HEIGHTxWIDTH (default: 720x1280, or --max if smaller).")
]
MaxOption = Annotated[str | None, typer.Option("--max", help="Largest tile, HEIGHTxWIDTH (default: 1920x1920).")]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        help="A network of your own: PACKAGE.MODULE:FACTORY gives the torch.nn.Module for the weights in CKPT.",
        metavar="MODULE:FACTORY",
    ),
]
LoaderOption = Annotated[
    Literal["spandrel"] | None, typer.Option("--loader", help="Read CKPT, of any network that it knows, with spandrel.")
]
AttentionOption = Annotated[
    str | None,
    typer.Option(
        help="Of MSAN. window[:SIZE]: overlapping windows of SIZE×SIZE pixels, a multiple of 8 (default: 384); "
        "or global: the whole picture.",
        metavar="global|window[:SIZE]",
    ),
]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures to compare on (default: shipped samples).")
]


def engine_spec(
    gpu: str, flavour: Flavour, smallest: str | None, typical: str | None, largest: str | None
) -> EngineSpec:
    """What to build.

    Raises:
        MsanError: if a name or a size cannot be read.
    """
    from msan_export.engine import DEFAULT_PROFILE, EngineSpec
    from msan_runtime.manifest import Profile

    most = _shape(largest) if largest else DEFAULT_PROFILE.max
    _, height, width = DEFAULT_PROFILE.opt
    profile = Profile(
        min=_shape(smallest) if smallest else DEFAULT_PROFILE.min,
        opt=_shape(typical) if typical else (1, min(height, most[1]), min(width, most[2])),
        max=most,
    )
    return EngineSpec(flavour=flavour, profile=profile, capabilities=capabilities_named(gpu))


def print_verdict(report: ParityReport) -> None:
    """Print the table of a report, and a line for each check that failed or was not run."""
    from msan_export.report.table import parity_notes, parity_table

    screen.print(parity_table(report))
    for note in parity_notes(report):
        say(note)


def say(line: str) -> None:
    """Print a line as it is, however wide the terminal."""
    screen.print(line, soft_wrap=True, markup=False)


@contextmanager
def phases() -> Generator[OnPhase]:
    """A progress line for the phases of an engine build."""
    with errors.status("working") as status:
        yield lambda phase, share: status.update(f"{phase} {share:.0%}")


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn a failure to write at ``path`` into a message."""
    try:
        yield
    except OSError as error:
        raise MsanError(f"cannot write to {path}: {error.strerror or error}. Choose another place") from error


def _shape(text: str) -> tuple[int, int, int]:
    """(1, height, width) from ``HEIGHTxWIDTH``."""
    height, _, width = text.lower().replace("×", "x").partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise MsanError(f"a tile size is HEIGHTxWIDTH in pixels, for example 720x1280, not {text!r}")
    return 1, int(height), int(width)
