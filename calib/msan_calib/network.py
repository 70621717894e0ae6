"""The graph to calibrate: any ONNX network from one picture to one picture, checked and made uniform."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from msan_runtime.contract import PictureArray, pad_to
from msan_runtime.errors import MsanError

__all__ = ["LEAST_OPSET", "QDQ_OPSET", "CalibrationError", "PictureNetwork", "load_network", "network_of"]

LEAST_OPSET = 13
QDQ_OPSET = 21
"""The first opset whose QuantizeLinear takes and gives every type that is used here."""

INPUT_TYPES: dict[int, str] = {TensorProto.UINT8: "uint8", TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})

Layout = Literal["NHWC", "NCHW"]
FloatArray = npt.NDArray[np.float64]


class CalibrationError(MsanError):
    """A graph, or samples, that cannot be calibrated."""


@dataclass(frozen=True, kw_only=True)
class PictureNetwork:
    """An FP32 graph whose nodes all have names of their own, and how pictures go in and come out.

    Attributes:
        model: the graph; functions are inlined.
        sha256: of the file.
        input, output: names of the picture tensors.
        layout: of both.
        dtype: of the input; float pictures run from 0 to ``peak``.
        channels: 1 or 3, of the input.
        batch: that the graph fixes, else 1.
        height, width: if the graph fixes them.
        peak: what white is in the input and in the output.
    """

    model: onnx.ModelProto
    sha256: str
    input: str
    output: str
    layout: Layout
    dtype: str
    channels: int
    batch: int
    height: int | None
    width: int | None
    peak: float

    @property
    def opset(self) -> int:
        """Of the standard operators."""
        return _opset(self.model)

    def feed(self, picture: PictureArray) -> npt.NDArray[Any]:
        """A batch for the graph, from uint8 H×W×3; cut and padded by edge replication to a fixed size, and repeated."""
        height, width = self.height or picture.shape[0], self.width or picture.shape[1]
        fitted = pad_to(picture[:height, :width], height, width)
        if self.channels == 1:
            fitted = np.round(fitted @ np.array([0.299, 0.587, 0.114]))[:, :, None].astype(np.uint8)
        scaled = fitted if self.dtype == "uint8" else (fitted * (self.peak / 255)).astype(self.dtype)
        laid_out = scaled if self.layout == "NHWC" else scaled.transpose(2, 0, 1)
        return np.ascontiguousarray(np.broadcast_to(laid_out, (self.batch, *laid_out.shape)))

    def picture(self, output: npt.NDArray[Any]) -> FloatArray:
        """The output as H×W×C in 0 to 1."""
        values = output[0].astype(np.float64) / self.peak
        return values if self.layout == "NHWC" else values.transpose(1, 2, 0)


def load_network(path: Path, *, peak: float | None = None) -> PictureNetwork:
    """Read an ONNX file from one picture to one picture.

    Args:
        path: of the file; FP32, opset 13 or later.
        peak: white in float pictures; 1 if ``None``. Pictures of uint8 always have 255.

    Raises:
        CalibrationError: if it cannot be read, or is not such a graph; it says why and what to do.
    """
    try:
        data = path.read_bytes()
        model = onnx.load(path)
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror or error}") from error
    except DecodeError as error:
        raise CalibrationError(f"{path} is not an ONNX file") from error
    return network_of(model, str(path), sha256=hashlib.sha256(data).hexdigest(), peak=peak)


def network_of(
    model: onnx.ModelProto, name: str = "the graph", *, sha256: str = "", peak: float | None = None
) -> PictureNetwork:
    """As :func:`load_network`, from a model in memory, which is not changed. ``name`` is for messages."""
    own = onnx.ModelProto()
    own.CopyFrom(model)
    if own.functions:
        own = inliner.inline_local_functions(own)
    own = _converted(own, name)
    _refuse_control_flow(own, name)
    _refuse_weights(own, name)
    _name_nodes(own)
    picture_in, picture_out = _picture_input(own, name), _picture_output(own, name)
    shape = [dim.dim_value or None for dim in picture_in.type.tensor_type.shape.dim]
    layout, channels = _layout(shape, picture_in.name, name)
    height, width = (shape[1], shape[2]) if layout == "NHWC" else (shape[2], shape[3])
    dtype = INPUT_TYPES[picture_in.type.tensor_type.elem_type]
    return PictureNetwork(
        model=own,
        sha256=sha256,
        input=picture_in.name,
        output=picture_out.name,
        layout=layout,
        dtype=dtype,
        channels=channels,
        batch=shape[0] or 1,
        height=height,
        width=width,
        peak=255.0 if dtype == "uint8" else (peak or 1.0),
    )


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _converted(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model in an opset that has typed Q/DQ operators; ONNX's own converter does it."""
    opset = _opset(model)
    if opset >= QDQ_OPSET:
        return model
    if opset < LEAST_OPSET:
        raise CalibrationError(f"{name} has opset {opset}: export it with opset {LEAST_OPSET} or later")
    try:
        return version_converter.convert_version(model, QDQ_OPSET)
    except Exception as error:  # whatever the converter trips over, in C++
        first = str(error).strip().splitlines()[0][:200]
        raise CalibrationError(
            f"{name} has opset {opset} and ONNX cannot convert it to {QDQ_OPSET} ({first}): export it with {QDQ_OPSET}"
        ) from error


def _refuse_control_flow(model: onnx.ModelProto, name: str) -> None:
    found = next((node for node in model.graph.node if node.op_type in CONTROL_FLOW), None)
    if found is not None:
        raise CalibrationError(
            f"{name} has a {found.op_type} operator ({found.name or 'unnamed'}): "
            "graphs with control flow cannot be calibrated. Export it without"
        )


def _refuse_weights(model: onnx.ModelProto, name: str) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            continue
        bad = int((~np.isfinite(numpy_helper.to_array(tensor))).sum())
        if bad:
            raise CalibrationError(f"{name}: {bad} values of weight {tensor.name} are NaN or infinite. Export it again")
        if tensor.data_type == TensorProto.FLOAT16 and any(tensor.name in node.input for node in model.graph.node):
            raise CalibrationError(f"{name} is FP16 already (weight {tensor.name}): calibrate the FP32 export")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise CalibrationError(f"{name} is quantised already: calibrate the FP32 export")


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own."""
    seen: Counter[str] = Counter()
    for index, node in enumerate(model.graph.node):
        base = node.name or f"{node.op_type}_{index}"
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}__{seen[base]}"


def _picture_input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        named = ", ".join(value.name for value in inputs) or "none"
        raise CalibrationError(f"{name} has {len(inputs)} inputs ({named}): only graphs of one picture are calibrated")
    kind = inputs[0].type.tensor_type
    if kind.elem_type not in INPUT_TYPES or len(kind.shape.dim) != 4:
        seen = helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else "unknown"
        raise CalibrationError(
            f"{name}: input {inputs[0].name} is {seen} with {len(kind.shape.dim)} dimensions, "
            "not a batch of pictures (uint8 or float, 4 dimensions)"
        )
    return inputs[0]


def _picture_output(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    kinds = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16)
    for value in model.graph.output:
        if value.type.tensor_type.elem_type in kinds:
            return value
    raise CalibrationError(f"{name} gives no picture: none of its outputs is uint8 or float")


def _layout(shape: list[int | None], tensor: str, name: str) -> tuple[Layout, int]:
    if len(shape) == 4 and shape[3] in (1, 3):
        return "NHWC", shape[3]
    if len(shape) == 4 and shape[1] in (1, 3):
        return "NCHW", shape[1]
    raise CalibrationError(
        f"{name}: input {tensor} has shape {shape}: one or three channels, first or last, are expected"
    )
