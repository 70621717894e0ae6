"""Small graphs from picture to picture, of no maker, with faults planted where a test wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper


def plain_graph(
    layers: int = 6, channels: int = 8, *, layout: str = "NCHW", opset: int = 21, seed: int = 3
) -> onnx.ModelProto:
    """A float picture plus what a row of residual convolutions with ReLU makes of it; names of another maker."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(index: int, name: str, given: str, out_channels: int, in_channels: int) -> str:
        scale = 1.0 / np.sqrt(9 * in_channels)
        values = rng.normal(0, scale, (out_channels, in_channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"k{index}"))
        weights.append(numpy_helper.from_array(rng.normal(0, 0.02, out_channels).astype(np.float32), f"c{index}"))
        nodes.append(
            helper.make_node("Conv", [given, f"k{index}", f"c{index}"], [name], name=f"layer/{index}", pads=[1] * 4)
        )
        return name

    current = "picture"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["picture"], ["planes"], name="in", perm=[0, 3, 1, 2]))
        current = "planes"
    start = current
    current = conv(0, "t0", current, channels, 3)
    for index in range(1, layers + 1):
        made = conv(index, f"t{index}", current, channels, channels)
        nodes.append(helper.make_node("Relu", [made], [f"r{index}"], name=f"act/{index}"))
        nodes.append(helper.make_node("Add", [f"r{index}", current], [f"s{index}"], name=f"sum/{index}"))
        current = f"s{index}"
    current = conv(layers + 1, "last", current, 3, channels)
    weights[-2].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(weights[-2]) * np.float32(0.02), f"k{layers + 1}")
    )
    nodes.append(helper.make_node("Add", [start, current], ["planes_out"], name="join"))
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["planes_out"], ["out"], name="end", perm=[0, 2, 3, 1]))
    else:
        nodes[-1].output[0] = "out"
    shape = ["n", "h", "w", 3] if layout == "NHWC" else ["n", 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def plant_scaling(model: onnx.ModelProto, tensor: str, up: float) -> onnx.ModelProto:
    """Multiply ``tensor`` by ``up`` right where it is made and divide it again: the same function in FP32."""
    planted = onnx.ModelProto()
    planted.CopyFrom(model)
    nodes: list[Any] = []
    for node in planted.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if tensor in copy.output:
            copy.output[list(copy.output).index(tensor)] = f"{tensor}_raw"
            nodes.append(copy)
            nodes.append(helper.make_node("Mul", [f"{tensor}_raw", "up"], [f"{tensor}_big"], name="planted/up"))
            nodes.append(helper.make_node("Div", [f"{tensor}_big", "up"], [tensor], name="planted/down"))
        else:
            nodes.append(copy)
    del planted.graph.node[:]
    planted.graph.node.extend(nodes)
    planted.graph.initializer.append(numpy_helper.from_array(np.asarray(up, np.float32), "up"))
    return planted


def weight_of(model: onnx.ModelProto, name: str) -> npt.NDArray[Any]:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def set_weight(model: onnx.ModelProto, name: str, values: npt.NDArray[Any]) -> onnx.ModelProto:
    """A copy with another weight."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return changed
