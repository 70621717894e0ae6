"""FP16 graphs: types where they should be, results near FP32, islands honoured, weights in range."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from msan_calib.casts import CastError, cast_to_float16, default_islands


def small_graph(weight_scale: float = 0.1) -> onnx.ModelProto:
    """conv - relu - conv on float N×3×H×W, as an FP32 graph with named nodes."""
    rng = np.random.default_rng(3)
    weights = {
        "w1": rng.normal(0, weight_scale, (4, 3, 3, 3)),
        "w2": rng.normal(0, weight_scale, (3, 4, 3, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    shape = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def operand_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of each convolution's weight, by node name."""
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {node.name: tensors[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


def test_every_convolution_is_fp16_and_the_interface_stays_fp32() -> None:
    model = cast_to_float16(small_graph(), islands=())
    onnx.checker.check_model(model, full_check=True)
    assert set(operand_types(model).values()) == {TensorProto.FLOAT16}
    ends = (*model.graph.input, *model.graph.output)
    assert [value.type.tensor_type.elem_type for value in ends] == [TensorProto.FLOAT, TensorProto.FLOAT]


def test_result_differs_from_fp32_by_rounding_only() -> None:
    x = np.random.default_rng(5).random((2, 3, 16, 24), np.float32)
    expected, found = run(small_graph(), x), run(cast_to_float16(small_graph(), islands=()), x)
    largest = float(np.abs(expected - found).max())
    # FP16 keeps 11 bits: a relative error of 2**-11 an operation, and some error there must be.
    assert 0 < largest < 8 * 2**-11 * float(np.abs(expected).max())


def test_an_island_keeps_its_node_and_weight_in_fp32() -> None:
    model = cast_to_float16(small_graph(), islands=["second"])
    onnx.checker.check_model(model, full_check=True)
    assert operand_types(model) == {"first": TensorProto.FLOAT16, "second": TensorProto.FLOAT}
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 2


def test_all_islands_leave_the_graph_as_it_is() -> None:
    model = cast_to_float16(small_graph(), islands=["first", "relu", "second"])
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Conv"]
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(run(model, x), run(small_graph(), x))


def test_a_weight_beyond_fp16_is_refused_by_name() -> None:
    with pytest.raises(CastError, match=r"w[12] reaches .*65504"):
        cast_to_float16(small_graph(weight_scale=1e6), islands=())


def test_an_unknown_island_is_refused() -> None:
    with pytest.raises(CastError, match="'third'"):
        cast_to_float16(small_graph(), islands=["third"])


def test_the_source_graph_is_not_changed() -> None:
    model = small_graph()
    before = model.SerializeToString(deterministic=True)
    cast_to_float16(model)
    assert model.SerializeToString(deterministic=True) == before


def test_default_islands_of_a_bare_network_are_none() -> None:
    assert default_islands(small_graph()) == set()
