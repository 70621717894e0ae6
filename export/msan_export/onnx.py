"""ONNX export: the deployable module as an opset-23 graph, in FP32 or FP16."""

from __future__ import annotations

import contextlib
import hashlib
import io as streams
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from google.protobuf.message import DecodeError

from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan_calib.casts import cast_to_float16
from msan_export.graph import DeployableMsan
from msan_runtime.atomic import write_bytes
from msan_runtime.contract import CONTRACT_VERSION, INPUT_NAME, OUTPUT_NAME, SIZE_MULTIPLE, Io
from msan_runtime.errors import MsanError

__all__ = [
    "METADATA_PREFIX",
    "OPSET",
    "ExportedMetadata",
    "OnnxArtifact",
    "OnnxError",
    "Precision",
    "export_onnx",
    "metadata_of",
    "onnx_from_checkpoint",
    "read_exported",
    "save_onnx",
    "set_metadata",
]

Precision = Literal["fp32", "fp16"]

OPSET = 23
"""The first opset with the Attention operator."""

METADATA_PREFIX = "msan."


class OnnxError(MsanError):
    """A file that is not an ONNX graph of ours."""


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact:
    """An exported graph: its file and what it is."""

    path: Path
    sha256: str
    opset: int
    precision: Precision
    io: Io
    contract_version: int


def export_onnx(checkpoint: Checkpoint, path: Path, *, precision: Precision, io: Io = "uint8") -> OnnxArtifact:
    """Export ``checkpoint`` and write the graph to ``path``, atomically.

    Raises:
        MsanError: if the weights do not fit FP16.
        OSError: if ``path`` cannot be written.
    """
    model = onnx_from_checkpoint(checkpoint, io=io)
    if precision == "fp16":
        model = cast_to_float16(model)
        set_metadata(model, {"precision": "fp16"})
    return save_onnx(model, path, precision=precision, io=io)


def save_onnx(model: onnx.ModelProto, path: Path, *, precision: Precision, io: Io) -> OnnxArtifact:
    """Check ``model`` with ``onnx.checker`` and write it, atomically."""
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    write_bytes(path, data)
    return OnnxArtifact(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        opset=OPSET,
        precision=precision,
        io=io,
        contract_version=CONTRACT_VERSION,
    )


def onnx_from_checkpoint(checkpoint: Checkpoint, *, io: Io) -> onnx.ModelProto:
    """The FP32 graph of ``checkpoint`` with dynamic batch, height and width (multiples of 8).

    Its metadata properties hold spec, precision, io, contract version and the checkpoint's hash,
    each under ``msan.``.
    """
    module = DeployableMsan(network_from_checkpoint(checkpoint), io).eval()
    model = _exported(module, io)
    _strip_traces(model)
    set_metadata(
        model,
        {
            "spec": json.dumps(checkpoint.spec.to_dict()),
            "precision": "fp32",
            "io": io,
            "contract_version": str(CONTRACT_VERSION),
            "checkpoint_sha256": checkpoint.sha256,
        },
    )
    return model


@dataclass(frozen=True, kw_only=True)
class ExportedMetadata:
    """What an exported graph says of itself."""

    precision: Precision
    io: Io


def read_exported(path: Path) -> tuple[bytes, ExportedMetadata]:
    """The bytes of an ONNX file that ``msan export`` wrote, and its metadata.

    Raises:
        OnnxError: if it is missing, not ONNX, or of another maker.
    """
    try:
        data = path.read_bytes()
        metadata = metadata_of(onnx.load_model_from_string(data))
    except OSError as error:
        raise OnnxError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise OnnxError(f"{path} is not an ONNX file") from error
    precision, picture_io = metadata.get("precision"), metadata.get("io")
    if precision not in ("fp32", "fp16") or picture_io not in ("uint8", "float32"):
        raise OnnxError(f"{path} was not made by msan export: it carries no msan.precision. Export the checkpoint")
    return data, ExportedMetadata(precision=precision, io=picture_io)


def set_metadata(model: onnx.ModelProto, values: dict[str, str]) -> None:
    """Set metadata properties under the ``msan.`` prefix; the others stay."""
    merged = {prop.key: prop.value for prop in model.metadata_props}
    merged.update({METADATA_PREFIX + key: value for key, value in values.items()})
    onnx.helper.set_model_props(model, dict(sorted(merged.items())))


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata properties under the ``msan.`` prefix, without it."""
    props = {prop.key: prop.value for prop in model.metadata_props}
    return {key.removeprefix(METADATA_PREFIX): v for key, v in props.items() if key.startswith(METADATA_PREFIX)}


def _exported(module: DeployableMsan, io: Io) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=64)
    rows = torch.export.Dim("height_8", min=1, max=4096)
    columns = torch.export.Dim("width_8", min=1, max=4096)
    # Odd multiples of 8 and more than one picture, so that no size is taken for a constant.
    example = torch.zeros((2, 5 * SIZE_MULTIPLE, 7 * SIZE_MULTIPLE, 3), dtype=getattr(torch, io))
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


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's own progress talk off the screen; its exceptions come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(streams.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
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
