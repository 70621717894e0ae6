"""FP16 graphs from FP32 graphs: weights and arithmetic in FP16 but for a list of FP32 islands.

TensorRT takes the types from the graph (it is strongly typed), so the types written here are those
of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from msan_runtime.errors import MsanError

__all__ = ["FLOAT16_MAX", "CastError", "cast_to_float16", "default_islands", "float_tensors", "half_inputs"]

FLOAT16_MAX = 65504.0

BOUNDARY_OPS = frozenset({"Cast", "Div", "Mul", "Sub", "Add", "Clip", "Round", "Transpose", "Min", "Max"})
"""Elementwise and layout operations: what the scaling before and after the network is made of."""


class CastError(MsanError):
    """A graph that cannot be written in FP16."""


def default_islands(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that stay FP32: attention, and the arithmetic on the picture itself.

    Attention in FP32 form is what TensorRT fuses with FP32 accumulators. Scaling 0-255 to 0-1, the
    final sum B + output, clamping and rounding cost nothing and would lose up to a quarter of a
    grey level in FP16.
    """
    nodes = list(model.graph.node)
    islands = {node.name for node in nodes if node.op_type == "Attention"}
    islands |= _picture_nodes(nodes, {value.name for value in model.graph.input}, forwards=True)
    islands |= _picture_nodes(nodes[::-1], {value.name for value in model.graph.output}, forwards=False)
    return islands


def cast_to_float16(model: onnx.ModelProto, islands: Iterable[str] | None = None) -> onnx.ModelProto:
    """A copy of an FP32 ``model`` in FP16, but for the nodes named in ``islands``.

    A tensor has the type of the node that makes it; where a consumer needs the other, one Cast is
    put after it. Graph inputs and outputs keep their types.

    Args:
        model: an FP32 graph whose nodes are named.
        islands: names of the nodes that stay FP32; :func:`default_islands` if left out.

    Operators that ONNX does not define for FP16, and those of other makers, stay FP32 too.

    Raises:
        CastError: for a weight beyond the range of FP16, or an island that is not in the graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    keep = default_islands(model) if islands is None else set(islands)
    unknown = keep - {node.name for node in model.graph.node}
    if unknown:
        raise CastError(f"no node named {sorted(unknown)[0]!r} in the graph, so it cannot stay FP32")
    _Caster(result, keep).run()
    return result


class _Caster:
    """Rewrites one graph in place."""

    def __init__(self, model: onnx.ModelProto, islands: set[str]) -> None:
        self.graph = model.graph
        self.islands = islands
        self.opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        self.floats = float_tensors(model)
        self.weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.outputs = {value.name for value in model.graph.output}
        self.types: dict[str, int] = {v.name: TensorProto.FLOAT for v in model.graph.input if v.name in self.floats}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}
        self.half_names: set[str] = set()

    def run(self) -> None:
        for node in self.graph.node:
            self._rewrite(node)
        self._restore_outputs()
        self._replace_weights()
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        # The old type annotations are stale; any reader infers them again.
        del self.graph.value_info[:]

    def _rewrite(self, node: onnx.NodeProto) -> None:
        schema = None if node.name in self.islands else _schema(node, self.opsets)
        halves = _half_types(schema)
        if node.op_type != "Cast":
            for index, name in enumerate(node.input):
                half = _parameter(schema.inputs, index) in halves if schema else False
                node.input[index] = self._as_type(name, TensorProto.FLOAT16 if half else TensorProto.FLOAT)
        retyped = schema is not None and _retype_attributes(node)
        for index, name in enumerate(node.output):
            if name in self.floats:
                half = retyped or (schema is not None and self._gives_half(node, schema, halves, index))
                self.types[name] = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.nodes.append(node)

    def _gives_half(self, node: onnx.NodeProto, schema: Any, halves: set[str], index: int) -> bool:
        """Whether an output has the type of an input that is FP16 now."""
        kind = _parameter(schema.outputs, index)
        if kind not in halves:
            return False
        names = [name for i, name in enumerate(node.input) if _parameter(schema.inputs, i) == kind]
        return any(name in self.half_names or self.types.get(name) == TensorProto.FLOAT16 for name in names)

    def _as_type(self, name: str, wanted: int) -> str:
        """The name of tensor ``name`` in type ``wanted``; a Cast or a second weight is made once."""
        if name in self.weights:
            self.made[name, wanted] = name if wanted == TensorProto.FLOAT else f"{name}_fp16"
            self.half_names.add(f"{name}_fp16")
            return self.made[name, wanted]
        if name not in self.floats or self.types[name] == wanted:
            return name
        if (name, wanted) not in self.made:
            self.made[name, wanted] = self._cast(name, f"{name}_{_suffix(wanted)}", wanted)
        return self.made[name, wanted]

    def _cast(self, source: str, target: str, wanted: int) -> str:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=wanted))
        self.types[target] = wanted
        return target

    def _restore_outputs(self) -> None:
        """Give FP32 graph outputs that became FP16 their type back."""
        for name in self.outputs & self.floats:
            if self.types[name] == TensorProto.FLOAT16:
                inner = f"{name}_fp16"
                for node in self.nodes:
                    node.output[:] = [inner if output == name else output for output in node.output]
                    node.input[:] = [inner if used == name else used for used in node.input]
                self._cast(inner, name, TensorProto.FLOAT)

    def _replace_weights(self) -> None:
        used = {(name, wanted) for name, wanted in self.made if name in self.weights}
        kept = [t for t in self.graph.initializer if t.name not in self.weights or (t.name, TensorProto.FLOAT) in used]
        halves = [_half(self.weights[name]) for name, wanted in used if wanted == TensorProto.FLOAT16]
        merged = sorted((*kept, *halves), key=lambda tensor: tensor.name)
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in merged]
        del self.graph.initializer[:]
        self.graph.initializer.extend(copies)


def _half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        raise CastError(f"weight {tensor.name} reaches {largest:g}, FP16 ends at {FLOAT16_MAX:g}. Export with fp32")
    return numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_fp16")


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the FP32 tensors of a graph that are not initializers, as ONNX infers them.

    Raises:
        CastError: if ONNX cannot infer them.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        first = " ".join(str(error).split())[:200]
        raise CastError(f"ONNX cannot infer the types of the graph: {first}. Export it again") from error
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}


def _schema(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Any:
    """What ONNX says of the operator; ``None`` if it does not know it."""
    domain = node.domain or "ai.onnx"
    try:
        return onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None


def _half_types(schema: Any) -> set[str]:
    """Type variables of an operator that may be FP16."""
    if schema is None:
        return set()
    return {entry.type_param_str for entry in schema.type_constraints if "tensor(float16)" in entry.allowed_type_strs}


def _parameter(formal: Any, index: int) -> str:
    """The type variable of an operator's input or output; the last one may stand for many."""
    return formal[min(index, len(formal) - 1)].type_str if len(formal) else ""


def _retype_attributes(node: onnx.NodeProto) -> bool:
    """Casts to FP32, and constants of FP32, in an FP16 node become FP16; whether one did."""
    changed = False
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
            changed = True
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            name = attribute.t.name
            attribute.t.CopyFrom(_half(attribute.t))
            attribute.t.name = name
            changed = True
    return changed


def _picture_nodes(nodes: list[onnx.NodeProto], frontier: set[str], *, forwards: bool) -> set[str]:
    """Nodes reached from the graph's ends through elementwise and layout operations alone."""
    found: set[str] = set()
    for node in nodes:
        touched = node.input if forwards else node.output
        if node.op_type in BOUNDARY_OPS and frontier.intersection(touched):
            found.add(node.name)
            frontier = frontier | set(node.output if forwards else node.input)
    return found


def _suffix(elem_type: int) -> str:
    return "fp32" if elem_type == TensorProto.FLOAT else "fp16"


def half_inputs(node: onnx.NodeProto, model: onnx.ModelProto) -> set[str]:
    """Names of the inputs of ``node`` that ONNX allows to be FP16."""
    schema = _schema(node, {entry.domain or "ai.onnx": entry.version for entry in model.opset_import})
    halves = _half_types(schema)
    if schema is None:
        return set()
    return {name for index, name in enumerate(node.input) if name and _parameter(schema.inputs, index) in halves}
