"""``msan export``: a checkpoint as an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from msan_export.commands.shared import (
    ArchOption,
    AttentionOption,
    CheckpointArgument,
    LoaderOption,
    errors,
    say,
    writing,
)
from msan_runtime.errors import MsanError

__all__ = ["export"]


def export(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Type of weights and arithmetic.")] = "fp16",
    io: Annotated[
        Literal["uint8", "float32"], typer.Option(help="Pictures, NHWC: uint8, or float32 in [0, 1].")
    ] = "uint8",
    attention: AttentionOption = None,
    arch: ArchOption = None,
    loader: LoaderOption = None,
) -> None:
    """Export a checkpoint to ONNX (opset 23; any batch, any height and width that are multiples of 8)."""
    from msan.checkpoint import find_checkpoint
    from msan_export.onnx import export_onnx
    from msan_export.source import attention_of, load_source

    source = find_checkpoint(checkpoint)
    if output.resolve() == source.resolve():
        raise MsanError(f"{output} is the checkpoint itself and would be overwritten. Choose another -o")
    loaded = load_source(checkpoint, arch=arch, loader=loader)
    chosen = attention_of(loaded, attention)
    with writing(output), errors.status("exporting"):
        artifact = export_onnx(loaded, output, precision=precision, io=io, attention=chosen)
    kind = f"{chosen} attention" if arch is None and loader is None else f"by {arch or loader}"
    form = f"{precision}, {io} pictures, {kind}, opset {artifact.opset}"
    say(f"{output}: {loaded.spec.name}, {form}, {output.stat().st_size / 1e6:.1f} MB")
