"""ONNX export: the deployable module as an opset-23 graph, in FP32 or FP16."""

from __future__ import annotations

import contextlib
import io as streams
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from msan_calib.casts import cast_to_float16
from msan_export.artifact import OPSET, OnnxArtifact, Precision, save_onnx, set_metadata
from msan_export.foreign import ForeignError, ForeignNetwork
from msan_export.source import Source, deployable
from msan_runtime.attention import GLOBAL, Attention
from msan_runtime.contract import CONTRACT_VERSION, INPUT_NAME, OUTPUT_NAME, SIZE_MULTIPLE, Io

__all__ = ["export_onnx", "float16_from_float32", "onnx_from_checkpoint"]

TALKATIVE = ("torch.onnx", "torch.export", "torch.fx", "torch.fx.experimental.symbolic_shapes")
"""Loggers of PyTorch that tell of a failed export at length; what they print besides is kept off, too."""


def export_onnx(
    checkpoint: Source, path: Path, *, precision: Precision, io: Io = "uint8", attention: Attention = GLOBAL
) -> OnnxArtifact:
    """Export ``checkpoint`` and write the graph to ``path``, atomically.

    Raises:
        MsanError: if the weights do not fit FP16, or PyTorch cannot export a network of another maker.
        OSError: if ``path`` cannot be written.
    """
    model = onnx_from_checkpoint(checkpoint, io=io, attention=attention)
    if precision == "fp16":
        model = float16_from_float32(model)
    return save_onnx(model, path, precision=precision, io=io)


def onnx_from_checkpoint(checkpoint: Source, *, io: Io, attention: Attention = GLOBAL) -> onnx.ModelProto:
    """The FP32 graph of ``checkpoint`` with dynamic batch, height and width (multiples of 8).

    Its metadata properties hold spec, attention, precision, io, contract version and the
    checkpoint's hash, each under ``msan.``.

    Raises:
        ForeignError: if PyTorch cannot export a network of another maker.
    """
    module = deployable(checkpoint, io, attention).eval()
    try:
        model = _exported(module, io, attention)
    except Exception as error:  # PyTorch's own; of MSAN itself it would be a defect here
        if isinstance(checkpoint, ForeignNetwork):
            raise _unexportable(checkpoint, error) from error
        raise
    _strip_traces(model)
    set_metadata(
        model,
        {
            "spec": json.dumps(checkpoint.spec.to_dict()),
            "attention": str(attention),
            "precision": "fp32",
            "io": io,
            "contract_version": str(CONTRACT_VERSION),
            "checkpoint_sha256": checkpoint.sha256,
        },
    )
    return model


def float16_from_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP16 form of an exported FP32 graph, its metadata told so.

    Raises:
        CastError: for a weight beyond the range of FP16.
    """
    half = cast_to_float16(model)
    set_metadata(half, {"precision": "fp16"})
    return half


def _exported(module: nn.Module, io: Io, attention: Attention) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=64)
    rows = torch.export.Dim("height_8", min=1, max=4096)
    columns = torch.export.Dim("width_8", min=1, max=4096)
    # Odd multiples of 8, several windows and more than one picture, so that no size is taken for a constant.
    tokens = 2 * (attention.window_tokens or 0)
    example = torch.zeros((2, *((tokens + more) * SIZE_MULTIPLE for more in (5, 7)), 3), dtype=getattr(torch, io))
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: batch, 1: SIZE_MULTIPLE * rows, 2: SIZE_MULTIPLE * columns},),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model_proto


def _unexportable(network: ForeignNetwork, error: BaseException) -> ForeignError:
    """In two lines, with the first line of PyTorch's innermost reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = line.partition(".  ")[0].rstrip(".")[:200]
    told = f"{type(error).__name__}: {reason}".removesuffix(": ")
    return ForeignError(
        f"{network.arch} cannot be exported by torch.onnx.export ({told}).\n"
        "docs/other-networks.md says what a network may not do: control flow that depends on values, above all"
    )


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's own talk off the screen, and the code that it dumps; its exceptions come through."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        aside = streams.StringIO()
        with contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they are large and hold paths of the exporting machine."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.ClearField("doc_string")
    model.graph.name = "msan"
