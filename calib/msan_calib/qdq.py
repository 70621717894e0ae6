"""INT8 and FP8 as the graph says it: QuantizeLinear and DequantizeLinear around what is quantised.

Symmetric, with zero points of zero; weights by output channel, stored in the quantised type; activations by tensor, one
pair for all convolutions that take it; biases and results in FP16. TensorRT takes its types from this form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from msan_calib.network import CalibrationError
from msan_calib.scales import LEVELS, QuantizedType

__all__ = ["QuantizedConvolution", "dequantized", "insert_qdq", "quantized"]

STORED: dict[QuantizedType, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@dataclass(frozen=True, kw_only=True)
class QuantizedConvolution:
    """How one convolution is quantised.

    Attributes:
        node: its name.
        tensor: its input in the FP32 graph.
        input_scale: of the input.
        weight: FP32, as in the graph.
        weight_scales: one for each output channel.
        bias: with the correction for what quantisation shifts, one value for each output channel.
    """

    node: str
    tensor: str
    input_scale: np.float16
    weight: npt.NDArray[np.float32]
    weight_scales: npt.NDArray[np.float16]
    bias: npt.NDArray[np.float32]


def quantized(values: npt.NDArray[Any], scale: npt.NDArray[Any] | np.float16, kind: QuantizedType) -> npt.NDArray[Any]:
    """``values`` over ``scale``, rounded to the type and clipped to its range: int8, or ``ml_dtypes`` FP8 E4M3."""
    scaled = values.astype(np.float32) / np.asarray(scale, np.float32)
    clipped = np.clip(scaled, -LEVELS[kind], LEVELS[kind])
    return np.rint(clipped).astype(np.int8) if kind == "int8" else clipped.astype(ml_dtypes.float8_e4m3fn)


def dequantized(
    values: npt.NDArray[Any], scale: npt.NDArray[Any] | np.float16, kind: QuantizedType
) -> npt.NDArray[np.float32]:
    """``values`` after quantisation and back, FP32."""
    return quantized(values, scale, kind).astype(np.float32) * np.asarray(scale, np.float32)


def insert_qdq(
    model: onnx.ModelProto, convolutions: Iterable[QuantizedConvolution], kind: QuantizedType
) -> onnx.ModelProto:
    """A copy of an FP16 ``model`` in which ``convolutions`` are quantised.

    Raises:
        CalibrationError: if one of them is not a convolution of the graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    wanted = {entry.node: entry for entry in convolutions}
    unknown = wanted.keys() - {node.name for node in result.graph.node if node.op_type == "Conv"}
    if unknown:
        raise CalibrationError(f"no convolution named {sorted(unknown)[0]!r} in the graph")
    writer = _Writer(result.graph, kind)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.name in wanted:
            nodes += writer.quantize(node, wanted[node.name])
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    _drop_unused(result.graph)
    result.graph.initializer.extend(writer.tensors)
    return result


class _Writer:
    """Makes the nodes and tensors of Q/DQ pairs; a tensor gets one pair."""

    def __init__(self, graph: onnx.GraphProto, kind: QuantizedType) -> None:
        self.graph = graph
        self.kind: QuantizedType = kind
        self.tensors: list[onnx.TensorProto] = []
        self._pairs: dict[tuple[str, float], str] = {}
        self._written: set[str] = set()

    def quantize(self, node: onnx.NodeProto, how: QuantizedConvolution) -> list[onnx.NodeProto]:
        """Nodes to put before ``node``, whose inputs are changed to theirs."""
        key = node.input[0], float(how.input_scale)
        pair = [] if key in self._pairs else self._pair(node.input[0], how)
        stem = f"{node.input[1].removesuffix('_fp16')}_{self.kind}"
        stored = _raw(quantized(how.weight, how.weight_scales.reshape(-1, 1, 1, 1), self.kind), stem, self.kind)
        zeros = _raw(np.zeros(len(how.weight_scales), _dtype(self.kind)), f"{stem}_zero", self.kind)
        if stem not in self._written:
            self.tensors += [stored, numpy_helper.from_array(how.weight_scales, f"{stem}_scale"), zeros]
            self._written.add(stem)
        names = [stem, f"{stem}_scale", f"{stem}_zero"]
        made = f"{node.name}_weight_dq"
        weight = helper.make_node("DequantizeLinear", names, [made], name=f"{node.name}_weight_dequantize", axis=0)
        bias = f"{node.name}_bias"
        self.tensors.append(numpy_helper.from_array(how.bias.astype(np.float16), bias))
        node.input[:] = [self._pairs[key], made, bias]
        return [*pair, weight]

    def _pair(self, tensor: str, how: QuantizedConvolution) -> list[onnx.NodeProto]:
        stem = f"{how.node}_input"
        self.tensors.append(numpy_helper.from_array(np.asarray(how.input_scale, np.float16), f"{stem}_scale"))
        self.tensors.append(_raw(np.zeros((), _dtype(self.kind)), f"{stem}_zero", self.kind))
        self._pairs[tensor, float(how.input_scale)] = f"{stem}_dq"
        names = [f"{stem}_scale", f"{stem}_zero"]
        return [
            helper.make_node("QuantizeLinear", [tensor, *names], [f"{stem}_q"], name=f"{stem}_quantize"),
            helper.make_node("DequantizeLinear", [f"{stem}_q", *names], [f"{stem}_dq"], name=f"{stem}_dequantize"),
        ]


def _dtype(kind: QuantizedType) -> Any:
    return np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn


def _raw(values: npt.NDArray[Any], name: str, kind: QuantizedType) -> onnx.TensorProto:
    return helper.make_tensor(name, STORED[kind], values.shape, values.tobytes(), raw=True)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights that no node takes any more."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
