"""Graphs that also give what they compute on the way: the sub-networks' outputs, and the picture before rounding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx
from onnx import NodeProto, TensorProto, helper

from msan_export.acceptance.reference import FLOAT_NAME, stage_name
from msan_runtime.contract import OUTPUT_NAME, Io
from msan_runtime.errors import ContractError

__all__ = ["tapped"]

LAST_LAYER = re.compile(r"(?:^|\.)edcoder(\d+)\.layer11\.weight")

Makers = Mapping[str, NodeProto]


def tapped(model: onnx.ModelProto, io: Io) -> onnx.ModelProto:
    """A copy of ``model`` whose further outputs are ``d1`` … ``dN`` and, of uint8 graphs, ``FLOAT_NAME``; FP32.

    Sub-networks are known by the name of their last convolution's weight, which casting and quantising keep; a graph
    of another network has none.

    Raises:
        ContractError: if a uint8 graph does not clamp its picture.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    taps = dict(_stages(model, makers))
    if io == "uint8":
        taps[FLOAT_NAME] = _before_rounding(makers)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name, tensor in taps.items():
        copy.graph.node.append(helper.make_node("Cast", [tensor], [name], name=f"tap_{name}", to=TensorProto.FLOAT))
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def _stages(model: onnx.ModelProto, makers: Makers) -> Iterator[tuple[str, str]]:
    for node in model.graph.node:
        found = LAST_LAYER.search(_source(node.input[1], makers)) if node.op_type == "Conv" else None
        if found is not None:
            yield stage_name(int(found[1])), node.output[0]


def _source(name: str, makers: Makers) -> str:
    """The initializer behind ``name``, before it was cast or dequantised."""
    while name in makers:
        name = makers[name].input[0]
    return name


def _before_rounding(makers: Makers) -> str:
    """The Clip's result."""
    name = OUTPUT_NAME
    while name in makers and makers[name].op_type != "Clip":
        name = makers[name].input[0]
    if name not in makers:
        raise ContractError("the graph does not clamp its picture: it was not made by msan export")
    return name
