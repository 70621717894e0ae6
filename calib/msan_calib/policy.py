"""Which convolutions may be quantised, by the form of the graph alone, in blocks that are decided on together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from msan_calib.walk import Step

__all__ = ["Block", "Convolution", "FlopCounter", "blocks_of", "convolutions_of"]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
ATTENTION = frozenset({"Attention", "Softmax"})
FEW_INPUT_CHANNELS = 6
FEW_OUTPUT_CHANNELS = 4
"""A convolution of no more reads or writes a picture, or two: it is the first or last of a sub-network."""
MOST_IN_BLOCK = 4


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution of the graph.

    Attributes:
        node: its name.
        kind: ``Conv`` or ``ConvTranspose``.
        flops: on one sample, a multiplication and an addition being two.
        kept: why it is not quantised; empty if it may be.
    """

    node: str
    kind: str
    flops: int
    kept: str = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Convolutions that are quantised together: those between two residual additions, four at most."""

    nodes: tuple[str, ...]
    flops: int

    @property
    def name(self) -> str:
        """Its first convolution, and how many follow."""
        more = len(self.nodes) - 1
        return self.nodes[0] if not more else f"{self.nodes[0]} +{more}"


class FlopCounter:
    """Counts the operations of convolutions as they run; give :meth:`visit` to a walk over one sample."""

    def __init__(self) -> None:
        self.flops: dict[str, int] = {}

    def visit(self, step: Step) -> None:
        """Count one node."""
        node = step.node
        if node.op_type not in CONVOLUTIONS:
            return
        weight = step.inputs[node.input[1]].shape()
        # A transposed convolution multiplies at each position of its input, any other at each of its output.
        at = step.outputs[node.output[0]] if node.op_type == "Conv" else step.inputs[node.input[0]]
        positions = at.shape()[0]
        for side in at.shape()[2:]:
            positions *= side
        products = 1
        for side in weight:
            products *= side
        self.flops[node.name] = 2 * positions * products


def convolutions_of(
    model: onnx.ModelProto, flops: Mapping[str, int], islands: Collection[str]
) -> tuple[Convolution, ...]:
    """Every convolution in the graph's order, and why those that stay as they are do.

    Args:
        model: the FP32 graph.
        flops: of each, by name.
        islands: nodes that stay FP32.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    makers = {name: node for node in model.graph.node for name in node.output}
    found: list[Convolution] = []
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            kept = _kept_by_form(node, shapes) or _kept_by_place(node, users, makers)
            kept = "it stays FP32" if node.name in islands else kept
            found.append(Convolution(node=node.name, kind=node.op_type, flops=flops.get(node.name, 0), kept=kept))
    return tuple(found)


def blocks_of(model: onnx.ModelProto, convolutions: Sequence[Convolution]) -> tuple[Block, ...]:
    """The convolutions that may be quantised, in blocks, in the graph's order."""
    flops = {entry.node: entry.flops for entry in convolutions if not entry.kept}
    weights = {tensor.name for tensor in model.graph.initializer}
    blocks: list[Block] = []
    open_nodes: list[str] = []

    def close() -> None:
        if open_nodes:
            blocks.append(Block(nodes=tuple(open_nodes), flops=sum(flops[name] for name in open_nodes)))
            open_nodes.clear()

    for node in model.graph.node:
        joins = node.op_type == "Add" and not weights.intersection(node.input)
        if joins or node.op_type == "ConvTranspose" or len(open_nodes) == MOST_IN_BLOCK:
            close()
        if node.name in flops:
            open_nodes.append(node.name)
    close()
    return tuple(blocks)


def _kept_by_form(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> str:
    weight = shapes.get(node.input[1])
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if node.op_type == "ConvTranspose":
        return "transposed convolution"
    if weight is None:
        return "its weight is not constant"
    if len(node.input) > 2 and node.input[2] and node.input[2] not in shapes:
        return "its bias is not constant"
    if len(weight) != 4:
        return "not a convolution of pictures"
    if group != 1:
        return "grouped convolution"
    if weight[1] <= FEW_INPUT_CHANNELS:
        return "first of a sub-network: it reads a picture"
    if weight[0] <= FEW_OUTPUT_CHANNELS:
        return "last of a sub-network: it writes a picture"
    return ""


def _kept_by_place(
    node: onnx.NodeProto,
    users: Mapping[str, Sequence[onnx.NodeProto]],
    makers: Mapping[str, onnx.NodeProto],
) -> str:
    after = _reached(node, users)
    if any(other.op_type in ATTENTION for other in after.values()):
        return "part of the attention module"
    if not any(other.op_type in CONVOLUTIONS for other in after.values()):
        return "last convolution"
    if not _convolution_before(node, makers):
        return "first convolution"
    return ""


def _reached(node: onnx.NodeProto, users: Mapping[str, Sequence[onnx.NodeProto]]) -> dict[str, onnx.NodeProto]:
    """Nodes after ``node``, up to and with the next convolutions."""
    found: dict[str, onnx.NodeProto] = {}
    open_names = list(node.output)
    while open_names:
        for user in users.get(open_names.pop(), ()):
            if user.name not in found:
                found[user.name] = user
                open_names += [] if user.op_type in CONVOLUTIONS else list(user.output)
    return found


def _convolution_before(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    seen: set[str] = set()
    open_names = list(node.input[:1])
    while open_names:
        maker = makers.get(open_names.pop())
        if maker is not None and maker.name not in seen:
            if maker.op_type in CONVOLUTIONS:
                return True
            seen.add(maker.name)
            open_names += list(maker.input)
    return False
