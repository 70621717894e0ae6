"""What is in an ONNX file, an engine or a bundle: types as built, operations by type, contract, validity here."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from msan_calib.network import CalibrationError
from msan_calib.policy import FlopCounter
from msan_calib.walk import Walker
from msan_export.artifact import claims_of, metadata_of
from msan_runtime.backends import rtx
from msan_runtime.engines.building import MODULES, LayerType, silent_logger
from msan_runtime.errors import MsanError
from msan_runtime.manifest import MANIFEST_NAME, Manifest, load_manifest, read_checked

__all__ = ["FLOPS_SIDE_PX", "Inspection", "InspectionError", "inspect", "onnx_layers", "validity_words"]

FLOPS_SIDE_PX = 256
"""Operations are counted on a square of this side, or on the size that the graph fixes."""

HEAVY_OPERATORS = {
    "Conv": "convolution",
    "ConvTranspose": "deconvolution",
    "MatMul": "matrix multiply",
    "Gemm": "matrix multiply",
    "Attention": "attention",
}
SHORT_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
ENGINE_HEADER_BYTES = 64
DIAGNOSTICS = (
    (1, "it was built by another release of TensorRT-RTX"),
    (2, "it was not built for this GPU's compute capability"),
    (4, "the CUDA driver is too old"),
    (8, "the CUDA runtime is too old"),
    (16, "the GPU has too little memory"),
    (32, "the file is not an engine, or damaged"),
    (64, "CUDA reported an error"),
)


class InspectionError(MsanError):
    """A file that cannot be looked into."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found.

    Attributes:
        kind: ``onnx``, ``engine`` or ``bundle``.
        facts: in the order in which they are told.
        layers: that compute, with their types; empty if nothing says so.
        gflop: billions of operations of convolutions by type, on ``FLOPS_SIDE_PX`` square pixels; of graphs.
        islands: nodes in FP32 by decision of ``msan calibrate``, and why.
        parts: of a bundle.
    """

    path: str
    kind: str
    facts: Mapping[str, str]
    layers: tuple[LayerType, ...] = ()
    gflop: Mapping[str, float] = field(default_factory=dict[str, float])
    islands: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: tuple[Inspection, ...] = ()

    @property
    def layer_counts(self) -> Mapping[str, int]:
        """Layers by kind and type."""
        return dict(sorted(Counter(f"{layer.kind} {layer.dtype}" for layer in self.layers).items()))


def inspect(path: Path) -> Inspection:
    """Look into an ONNX file, an engine or a bundle's folder. Nothing in it is run but the ONNX graph's convolutions.

    Raises:
        InspectionError: if it is none of these, or cannot be read.
        BundleError: for a bundle whose files were changed.
    """
    if path.is_dir():
        return _bundle(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InspectionError(f"cannot read {path}: {error.strerror or error}") from error
    if path.suffix == ".engine":
        return _engine(path.name, data, _entry_beside(path))
    return _graph(path.name, data)


def onnx_layers(model: onnx.ModelProto) -> tuple[LayerType, ...]:
    """Every node that computes, with the type it computes in: of Q/DQ pairs the type before dequantisation."""
    types = _types(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    found: list[LayerType] = []
    for node in model.graph.node:
        kind = HEAVY_OPERATORS.get(node.op_type)
        if kind is not None:
            seen = [_computed(name, types, makers, kind) for name in node.input[:2]]
            dtype = seen[0] if len(set(seen)) == 1 else next((t for t in ("fp32", "fp16") if t in seen), seen[0])
            found.append(LayerType(kind=kind, name=node.name, dtype=dtype))
    return tuple(found)


def _graph(name: str, data: bytes) -> Inspection:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InspectionError(f"{name} is neither an ONNX file, nor an engine, nor a bundle's folder") from error
    if not model.graph.node:
        raise InspectionError(f"{name} is neither an ONNX file, nor an engine, nor a bundle's folder")
    layers = onnx_layers(model)
    told = metadata_of(model)
    facts = {
        "size": f"{len(data) / 1e6:.1f} MB",
        "SHA-256": hashlib.sha256(data).hexdigest(),
        "opset": ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import),
        "takes": ", ".join(_tensor(value) for value in _inputs(model)),
        "gives": ", ".join(_tensor(value) for value in model.graph.output),
        **{key: value for key, value in told.items() if key not in ("quantized", "islands")},
    }
    return Inspection(
        path=name,
        kind="onnx",
        facts=facts,
        layers=layers,
        gflop=_gflop(model, layers),
        islands=claims_of(model).islands,
    )


def _engine(name: str, data: bytes, entry: Mapping[str, Any] | None) -> Inspection:
    facts = {"size": f"{len(data) / 1e6:.1f} MB", "SHA-256": hashlib.sha256(data).hexdigest()}
    layers: tuple[LayerType, ...] = ()
    if entry is not None:
        layers = tuple(LayerType(**layer) for layer in entry.get("layers", ()))
        profile = entry["profile"]
        facts |= {
            "built by": f"{entry['flavour']} {entry['flavour_version']}",
            "compute capabilities": ", ".join(entry["compute_capabilities"]),
            "precision": str(entry["precision"]),
            "profile": ", ".join(f"{key} {'×'.join(map(str, profile[key]))}" for key in ("min", "opt", "max")),
            "graph": str(entry["graph"]),
        }
    else:
        facts["types"] = f"not known: there is no {name}.json beside it. Build it again with: msan build"
    facts["here"] = _validity(data, str(entry["flavour"]) if entry is not None else "tensorrt-rtx")
    return Inspection(path=name, kind="engine", facts=facts, layers=layers)


def _bundle(folder: Path) -> Inspection:
    if not (folder / MANIFEST_NAME).is_file():
        raise InspectionError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}")
    manifest: Manifest = load_manifest(folder)
    data = {file.path: read_checked(folder, file) for file in manifest.files}
    parts = [_graph(graph.path, data[graph.path]) for graph in manifest.graphs]
    for engine in manifest.engines:
        parts.append(_engine(engine.path, data[engine.path], _entry_beside(folder / engine.path)))
    facts = {
        "name": manifest.name,
        "network": ", ".join(f"{key} {value}" for key, value in manifest.spec.items()),
        "attention": manifest.attention,
        "image contract": str(manifest.contract_version),
        **dict(manifest.provenance),
        "made with": ", ".join(f"{tool} {release}" for tool, release in manifest.versions.items()),
        "files": f"{len(manifest.files)}, every SHA-256 as in the manifest",
    }
    return Inspection(path=folder.name, kind="bundle", facts=facts, parts=tuple(parts))


def _entry_beside(path: Path) -> Mapping[str, Any] | None:
    """What ``msan build`` wrote beside the engine."""
    beside = path.with_name(f"{path.name}.json")
    try:
        entry = json.loads(beside.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InspectionError(f"cannot read {beside}: {error}. Build the engine again") from error
    if not isinstance(entry, dict) or not {"flavour", "flavour_version", "profile"} <= entry.keys():
        raise InspectionError(f"{beside} was not written by msan build. Build the engine again")
    return entry


def _validity(data: bytes, flavour: str) -> str:
    """Whether the engine runs on this machine, in words."""
    if flavour != "tensorrt-rtx":
        return "TensorRT tells only by loading it: msan deblur --backend tensorrt"
    try:
        trt: Any = importlib.import_module(MODULES["tensorrt-rtx"][0])
    except ModuleNotFoundError:
        return "not known: TensorRT-RTX is not installed (pip install 'msan[rtx]')"
    reason = rtx.unavailable()
    if reason is not None:
        return f"does not run here: {reason}"
    runtime = trt.Runtime(silent_logger(trt))
    verdict, diagnostics = runtime.get_engine_validity(data[:ENGINE_HEADER_BYTES])
    return validity_words(verdict.name, int(diagnostics))


def validity_words(verdict: str, diagnostics: int) -> str:
    """TensorRT-RTX's verdict on an engine and its diagnostic bits, in words."""
    reasons = [words for bit, words in DIAGNOSTICS if diagnostics & bit]
    told = {"VALID": "runs here", "SUBOPTIMAL": "runs here, not at its best", "INVALID": "does not run here"}
    return ": ".join([told.get(verdict, verdict), *([", ".join(reasons)] if reasons else [])])


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _computed(name: str, types: Mapping[str, int], makers: Mapping[str, onnx.NodeProto], kind: str) -> str:
    """The type of an operand; before a cast that asks attention for FP32 sums, and before dequantisation."""
    maker = makers.get(name)
    through = maker is not None and (
        maker.op_type == "DequantizeLinear" or (kind == "attention" and maker.op_type == "Cast")
    )
    elem = types.get(maker.input[0] if maker is not None and through else name, 0)
    return SHORT_TYPES.get(elem, TensorProto.DataType.Name(elem).lower())


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _tensor(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    sides = (dim.dim_param or str(dim.dim_value or "?") for dim in kind.shape.dim)
    return f"{value.name} {SHORT_TYPES.get(kind.elem_type, '?')} {'×'.join(sides)}"


def _gflop(model: onnx.ModelProto, layers: Sequence[LayerType]) -> dict[str, float]:
    """Billions of operations of convolutions by type; empty if the graph does not run on a grey picture."""
    counter = FlopCounter()
    try:
        Walker(model).run({value.name: _grey(value) for value in _inputs(model)}, counter.visit)
    except (CalibrationError, ValueError, TypeError):
        return {}
    sums: Counter[str] = Counter()
    for layer in layers:
        sums[layer.dtype] += counter.flops.get(layer.name, 0)
    return {dtype: flops / 1e9 for dtype, flops in sums.items() if flops}


def _grey(value: onnx.ValueInfoProto) -> npt.NDArray[Any]:
    kind = value.type.tensor_type
    dims = [dim.dim_value for dim in kind.shape.dim]
    channels = 3 if dims[-1:] == [3] else 1
    sides = [side or FLOPS_SIDE_PX for side in dims]
    if len(dims) == 4:
        sides[0] = dims[0] or 1
        sides[1 if channels == 1 else 3] = dims[1 if channels == 1 else 3] or 3
    return np.full(sides, 1, helper.tensor_dtype_to_np_dtype(kind.elem_type))
