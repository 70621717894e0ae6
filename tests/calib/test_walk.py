"""Node by node: the same result as ONNX Runtime in one piece, and FP16 as it is, overflow and all."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.calib.graphs import plain_graph, plant_scaling

from msan_calib.casts import cast_to_float16
from msan_calib.network import CalibrationError, network_of
from msan_calib.samples import Sample
from msan_calib.walk import Step, Walker


def test_the_result_is_that_of_one_session(pictures: tuple[Sample, ...]) -> None:
    network = network_of(plain_graph())
    feed = {"picture": network.feed(pictures[0].blurred)}
    session = onnxruntime.InferenceSession(network.model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = np.asarray(session.run(None, feed)[0])
    assert np.abs(Walker(network.model).run(feed)["out"] - expected).max() < 1e-5


def test_fp16_overflows_where_one_session_on_a_cpu_hides_it(pictures: tuple[Sample, ...]) -> None:
    network = network_of(plant_scaling(plain_graph(), "t2", 1e6))
    half = cast_to_float16(_without_big_weights(network.model), islands=())
    feed = {"picture": network.feed(pictures[0].blurred)}
    assert not np.isfinite(Walker(half).run(feed)["out"]).all()


def test_every_tensor_is_seen_once_and_in_order(pictures: tuple[Sample, ...]) -> None:
    network = network_of(plain_graph(layers=2))
    seen: list[str] = []

    def visit(step: Step) -> None:
        seen.extend(step.float_outputs())

    Walker(network.model).run({"picture": network.feed(pictures[0].blurred)}, visit)
    assert seen == [name for node in network.model.graph.node for name in node.output]


def test_an_operator_that_does_not_run_is_named() -> None:
    model = plain_graph(layers=1)
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(CalibrationError, match=r"cannot run node layer/1 \(NoSuchOperator\)"):
        Walker(network_of(model).model).run({"picture": np.zeros((1, 3, 8, 8), np.float32)})


def _without_big_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same fault with a factor that FP16 can hold, on larger values."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "up":
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(6e4, np.float32), "up"))
        if tensor.name == "k2":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(100), "k2"))
    return changed
