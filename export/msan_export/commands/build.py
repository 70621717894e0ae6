"""``msan build``: an engine from an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from msan_export.commands.shared import (
    FlavourOption,
    MaxOption,
    MinOption,
    OptOption,
    engine_spec,
    phases,
    say,
    screen,
    writing,
)
from msan_runtime.errors import MsanError
from msan_runtime.targets import DEFAULT_GPUS, describe_targets

if TYPE_CHECKING:
    from msan_export.engine import Engine

__all__ = ["build"]


def build(
    model: Annotated[Path | None, typer.Argument(help="ONNX file from msan export.", metavar="MODEL.onnx")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the engine.")] = Path(),
    gpu: Annotated[str, typer.Option("--gpu", help="GPUs, comma-separated; 'list' prints the names.")] = DEFAULT_GPUS,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "fp8"] | None,
        typer.Option(help="Type to prove (default: as exported). fp32 needs a network without attention."),
    ] = None,
    flavour: FlavourOption = "tensorrt-rtx",
    smallest: MinOption = None,
    typical: OptOption = None,
    largest: MaxOption = None,
) -> None:
    """Build an engine from an ONNX file and prove its types. TensorRT-RTX needs no GPU for it."""
    if gpu == "list":
        _print_targets()
        return
    from msan_export.artifact import read_exported
    from msan_export.engine import build_engine, save_engine

    if model is None:
        raise MsanError("no ONNX file given: msan build MODEL.onnx -o DIR. Make one with: msan export")
    spec = engine_spec(gpu, flavour, smallest, typical, largest)
    graph, metadata = read_exported(model)
    with phases() as on_phase:
        engine = build_engine(graph, spec, precision or metadata.precision, on_phase=on_phase)
    with writing(output):
        path = save_engine(engine, output, model)
    _print_engine(engine, path)


def _print_targets() -> None:
    table = Table("name", "capability", "family", "cards")
    for row in describe_targets():
        table.add_row(*row)
    screen.print(table)
    say("Also taken: sm_86, sm86 and 8.6 forms. Several: --gpu rtx30,rtx40,rtx50")


def _print_engine(engine: Engine, path: Path) -> None:
    targets = ", ".join(capability.sm for capability in engine.spec.capabilities)
    say(f"{path}: {engine.spec.flavour} {engine.version} for {targets}, {len(engine.data) / 1e6:.1f} MB")
    for kind, count in engine.layer_types.items():
        say(f"  {count:4} × {kind}")
