"""What is taken as a graph to calibrate, and what is refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.calib.graphs import plain_graph, set_weight, weight_of

from msan_calib.network import CalibrationError, load_network, network_of


def test_layout_type_and_peak_are_read_from_the_graph() -> None:
    picture = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    planes = network_of(plain_graph(), peak=255).feed(picture)
    assert planes.shape == (1, 3, 16, 24)
    assert np.array_equal(planes[0].transpose(1, 2, 0), picture.astype(np.float32))
    rows = network_of(plain_graph(layout="NHWC")).feed(picture)
    assert np.allclose(rows[0] * 255, picture, atol=1e-4)


def test_a_fixed_size_is_kept_to() -> None:
    model = plain_graph()
    for value in (*model.graph.input, *model.graph.output):
        for index, side in ((0, 1), (2, 32), (3, 40)):
            value.type.tensor_type.shape.dim[index].dim_value = side
    network = network_of(model)
    assert (network.height, network.width) == (32, 40)
    assert network.feed(np.zeros((24, 64, 3), np.uint8)).shape == (1, 3, 32, 40)


def test_a_fixed_batch_is_filled() -> None:
    model = plain_graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    feed = network_of(model).feed(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    assert feed.shape == (4, 3, 8, 8)
    assert np.array_equal(feed[0], feed[3])


def test_older_opsets_are_converted_and_very_old_ones_refused() -> None:
    assert network_of(plain_graph(opset=15)).opset == 21
    with pytest.raises(CalibrationError, match="has opset 11: export it with opset 13 or later"):
        network_of(plain_graph(opset=11))


def test_nodes_get_names_of_their_own() -> None:
    model = plain_graph(layers=3)
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Conv" else ""
    names = [node.name for node in network_of(model).model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def nan_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    values = weight_of(model, "k2").copy()
    values[0, 0, 0, :2] = np.nan
    return set_weight(model, "k2", values)


def two_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info("strength", 1, [1]))
    return model


def control_flow(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[1].op_type = "Loop"
    return model


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[1].op_type = "QuantizeLinear"
    return model


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    return set_weight(model, "k1", weight_of(model, "k1").astype(np.float16))


def matrix(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.input[0].type.tensor_type.shape.dim[2:]
    return model


def five_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (nan_weight, "2 values of weight k2 are NaN or infinite"),
        (two_inputs, r"has 2 inputs \(picture, strength\)"),
        (control_flow, "has a Loop operator"),
        (quantised, "is quantised already"),
        (half, "is FP16 already"),
        (matrix, "with 2 dimensions, not a batch of pictures"),
        (five_channels, "one or three channels, first or last, are expected"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change: object, words: str) -> None:
    with pytest.raises(CalibrationError, match=words) as told:
        network_of(change(plain_graph()))  # type: ignore[operator]
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 2


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        load_network(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(CalibrationError, match="is not an ONNX file"):
        load_network(tmp_path / "text.onnx")
