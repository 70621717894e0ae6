"""Runs a graph node by node, so that every tensor is seen as it passes, in its own type, and then let go.

ONNX Runtime as a whole computes FP16 graphs on a CPU in FP32: it takes the rounding between two operators away, and an
overflow is not seen. Node by node, each result is rounded to the type that the graph gives it, as on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from msan_calib.network import CalibrationError

__all__ = ["NodeRunner", "Step", "Visit", "Walker"]

FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}
BYTES = frozenset({TensorProto.FLOAT8E4M3FN})
"""Types that NumPy lacks: they go in as bytes."""

Values = dict[str, Any]
"""Tensors by name, as ``onnxruntime.OrtValue``."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A node that has just run.

    Attributes:
        node: of the graph.
        inputs, outputs: its tensors by name, as ``onnxruntime.OrtValue``.
        is_weight: names among the inputs that are initializers.
    """

    node: onnx.NodeProto
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    is_weight: frozenset[str]

    def float_outputs(self) -> Mapping[str, npt.NDArray[Any]]:
        """Floating-point results as arrays."""
        return {name: value.numpy() for name, value in self.outputs.items() if value.element_type() in FLOATS}


Visit = Callable[[Step], None]


class NodeRunner:
    """Runs single nodes. Nodes of one operator, one set of attributes and one set of types share a session."""

    def __init__(self, model: onnx.ModelProto, *, threads: int | None = None) -> None:
        self._opsets = list(model.opset_import)
        self._sessions: dict[bytes, Any] = {}
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 4
        # An arena would keep the largest tensor of each session.
        self._options.enable_cpu_mem_arena = False
        # There is a session for each kind of node: their threads would wait in loops, and take the cores from the rest.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            self._options.intra_op_num_threads = threads

    def run(self, node: onnx.NodeProto, inputs: Mapping[str, Any]) -> list[Any]:
        """The outputs of ``node`` that have a name, in order.

        Raises:
            CalibrationError: if ONNX Runtime cannot run it.
        """
        given = [inputs[name] for name in node.input if name]
        session = self._session(node, tuple(value.element_type() for value in given))
        feeds = {f"i{index}": value for index, value in enumerate(given)}
        wanted = [f"o{index}" for index, name in enumerate(node.output) if name]
        try:
            return session.run_with_ort_values(wanted, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _cannot_run(node, error) from error

    def _session(self, node: onnx.NodeProto, types: tuple[int, ...]) -> Any:
        alike = _alike(node)
        key = alike.SerializeToString(deterministic=True) + bytes(types)
        if key not in self._sessions:
            feeds = [helper.make_tensor_value_info(f"i{i}", kind, None) for i, kind in enumerate(types)]
            outputs = [onnx.ValueInfoProto(name=name) for name in alike.output if name]
            graph = helper.make_graph([alike], "node", feeds, outputs)
            model = helper.make_model(graph, opset_imports=self._opsets, ir_version=10)
            try:
                self._sessions[key] = onnxruntime.InferenceSession(
                    model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # as above
                raise _cannot_run(node, error) from error
        return self._sessions[key]


class Walker:
    """Runs one graph node by node, in its own order.

    Memory: the graph's weights, and the tensors that a later node still needs.
    """

    def __init__(self, model: onnx.ModelProto, *, runner: NodeRunner | None = None) -> None:
        self.model = model
        self._runner = runner or NodeRunner(model)
        self._weights = {tensor.name: _value(tensor) for tensor in model.graph.initializer}
        self._names = frozenset(self._weights)
        self._outputs = [value.name for value in model.graph.output]
        self._uses = Counter(name for node in model.graph.node for name in set(node.input))
        self._uses.update(self._outputs)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], visit: Visit | None = None) -> dict[str, npt.NDArray[Any]]:
        """The graph's outputs on ``feeds``; ``visit`` is called after every node.

        Raises:
            CalibrationError: if a node cannot be run.
        """
        values: Values = {**self._weights, **{name: _ort_value(array) for name, array in feeds.items()}}
        left = Counter(self._uses)
        for node in self.model.graph.node:
            inputs = {name: values[name] for name in node.input if name}
            results = self._runner.run(node, inputs)
            outputs = dict(zip([name for name in node.output if name], results, strict=True))
            values.update(outputs)
            if visit is not None:
                weights = self._names.intersection(inputs)
                visit(Step(node=node, inputs=inputs, outputs=outputs, is_weight=weights))
            del inputs, results
            _release(values, left, node, outputs)
        return {name: values[name].numpy() for name in self._outputs}


def _release(values: Values, left: Counter[str], node: onnx.NodeProto, outputs: Mapping[str, Any]) -> None:
    """Let go of what no later node needs."""
    left.subtract(set(node.input))
    for name in (*node.input, *outputs):
        if left[name] <= 0:
            values.pop(name, None)


def _alike(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node under names that all nodes like it have."""
    alike = onnx.NodeProto()
    alike.CopyFrom(node)
    alike.name = "node"
    given = iter(range(len(node.input)))
    alike.input[:] = [f"i{next(given)}" if name else "" for name in node.input]
    alike.output[:] = [f"o{index}" if name else "" for index, name in enumerate(node.output)]
    return alike


def _value(tensor: onnx.TensorProto) -> Any:
    if tensor.data_type in BYTES:
        data = np.frombuffer(tensor.raw_data, np.uint8).reshape(tuple(tensor.dims))
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(data, tensor.data_type)
    return _ort_value(numpy_helper.to_array(tensor))


def _ort_value(array: npt.NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _cannot_run(node: onnx.NodeProto, error: Exception) -> CalibrationError:
    first = " ".join(str(error).split())[:300]
    return CalibrationError(f"ONNX Runtime cannot run node {node.name} ({node.op_type}): {first}")
