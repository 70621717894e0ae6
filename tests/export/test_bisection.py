"""A backend that computes one node wrongly is found out, though the graph is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from msan_export.acceptance.bisection import LIBRARIES, Library, bisected_departure
from msan_export.acceptance.cases import sample_cases, sized
from msan_runtime.contract import INPUT_NAME
from msan_runtime.errors import BackendError

FEED = {INPUT_NAME: sized(sample_cases()[0].picture, 32, 32)[None]}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> onnx.ModelProto:
    return onnx.load(next(tiny_bundle.glob("*.fp32.onnx")))


def weighted(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]


def wrong_in(node: onnx.NodeProto) -> Library:
    """A library that negates one node's weights, whatever part of the graph it is given."""

    def run(graph: bytes, feed: Mapping[str, Any]) -> Any:
        changed = onnx.load_model_from_string(graph)
        tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == node.input[1])
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return LIBRARIES["ort-cpu"](changed.SerializeToString(), feed)

    return run


@pytest.mark.parametrize("place", [0, 7, -1])
def test_the_node_that_a_library_gets_wrong_is_named(model: onnx.ModelProto, place: int) -> None:
    node = weighted(model)[place]
    found = bisected_departure(wrong_in(node), model, FEED, tolerance=1e-3)
    assert found is not None
    assert (found.node, found.operator) == (node.name, node.op_type)
    assert "its error is" in found.words


@pytest.mark.parametrize("name", ["ort-cpu", "openvino"])
def test_a_library_that_is_right_has_no_such_node(model: onnx.ModelProto, name: str) -> None:
    assert bisected_departure(LIBRARIES[name], model, FEED, tolerance=1e-3) is None


def test_nan_from_a_library_is_named(model: onnx.ModelProto) -> None:
    node = weighted(model)[5]

    def run(graph: bytes, feed: Mapping[str, Any]) -> Any:
        """NaN in everything that depends on the node."""
        changed = onnx.load_model_from_string(graph)
        tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == node.input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))
        return LIBRARIES["ort-cpu"](changed.SerializeToString(), feed)

    found = bisected_departure(run, model, FEED, tolerance=1e-3)
    assert found is not None
    assert found.node == node.name
    assert "NaN" in found.words


@pytest.mark.parametrize("name", ["ort-cpu", "openvino"])
def test_what_a_library_cannot_run_is_told_in_words(name: str) -> None:
    with pytest.raises(BackendError, match=r"a part of the graph|cannot load"):
        LIBRARIES[name](b"no graph", FEED)


def test_graphs_of_float_pictures_are_looked_into_too(tiny_bundle: Path) -> None:
    model = onnx.load(next(tiny_bundle.glob("*.fp32.float.onnx")))
    feed = {INPUT_NAME: FEED[INPUT_NAME].astype(np.float32) / 255}
    node = weighted(model)[3]
    found = bisected_departure(wrong_in(node), model, feed, tolerance=1e-3)
    assert found is not None
    assert found.node == node.name
