"""Exported graphs as files: their metadata, and reading and writing them. Needs onnx, not torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import onnx
from google.protobuf.message import DecodeError

from msan_runtime.atomic import write_bytes
from msan_runtime.contract import CONTRACT_VERSION, Io
from msan_runtime.errors import MsanError

__all__ = [
    "METADATA_PREFIX",
    "OPSET",
    "ExportedMetadata",
    "OnnxArtifact",
    "OnnxError",
    "Precision",
    "TypeClaims",
    "claims_of",
    "metadata_of",
    "read_exported",
    "save_onnx",
    "set_metadata",
]

Precision = Literal["fp32", "fp16", "int8", "fp8"]
"""Of FP16 graphs some nodes stay FP32, of INT8 and FP8 graphs most stay FP16: the graph says which."""

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


@dataclass(frozen=True, kw_only=True)
class ExportedMetadata:
    """What an exported graph says of itself."""

    precision: Precision
    io: Io


@dataclass(frozen=True, kw_only=True)
class TypeClaims:
    """The types that a calibrated graph says its nodes have.

    Attributes:
        quantized: convolutions that are INT8 or FP8.
        islands: nodes that stay FP32, and why.
    """

    quantized: frozenset[str] = frozenset()
    islands: Mapping[str, str] = field(default_factory=dict[str, str])


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
    if precision not in get_args(Precision) or picture_io not in ("uint8", "float32"):
        raise OnnxError(f"{path} was not made by msan export: it carries no msan.precision. Export the checkpoint")
    return data, ExportedMetadata(precision=cast(Precision, precision), io=picture_io)


def claims_of(model: onnx.ModelProto) -> TypeClaims:
    """What ``msan calibrate`` wrote into a graph; nothing if it did not make it.

    Raises:
        OnnxError: if it cannot be read.
    """
    told = metadata_of(model)
    try:
        quantized, islands = json.loads(told.get("quantized", "[]")), json.loads(told.get("islands", "{}"))
        return TypeClaims(
            quantized=frozenset(quantized), islands={str(node): str(why) for node, why in islands.items()}
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise OnnxError("the graph's msan.quantized or msan.islands was changed: calibrate it again") from error


def set_metadata(model: onnx.ModelProto, values: dict[str, str]) -> None:
    """Set metadata properties under the ``msan.`` prefix; the others stay."""
    merged = {prop.key: prop.value for prop in model.metadata_props}
    merged.update({METADATA_PREFIX + key: value for key, value in values.items()})
    onnx.helper.set_model_props(model, dict(sorted(merged.items())))


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata properties under the ``msan.`` prefix, without it."""
    props = {prop.key: prop.value for prop in model.metadata_props}
    return {key.removeprefix(METADATA_PREFIX): v for key, v in props.items() if key.startswith(METADATA_PREFIX)}
