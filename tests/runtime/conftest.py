"""Deblurrers around plain functions, and bundles with an ONNX graph that inverts: 255 - x shows that it ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from msan_runtime.backends.base import Backend, TileLimits
from msan_runtime.bundle import Bundle
from msan_runtime.contract import CONTRACT_VERSION, INPUT_NAME, OUTPUT_NAME, Io, PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.manifest import GraphEntry, Manifest, describe_file, save_manifest
from msan_runtime.select import Selection

Network = Callable[[PictureArray], PictureArray]


class FunctionBackend(Backend):
    """Runs a NumPy function in the network's place."""

    name = "function"
    device = "NumPy"

    def __init__(self, network: Network, limits: TileLimits, io: Io = "uint8") -> None:
        self.limits = limits
        self.io = io
        self.closed = False
        self._network = network

    def infer(self, tiles: PictureArray) -> PictureArray:
        return self._network(tiles.copy(order="K"))

    def close(self) -> None:
        self.closed = True


def manifest_of(folder: Path, graphs: tuple[GraphEntry, ...]) -> Manifest:
    return Manifest(
        name="tiny",
        spec={"stages": 2, "attention": True},
        contract_version=CONTRACT_VERSION,
        graphs=graphs,
        engines=(),
        files=tuple(describe_file(folder, graph.path) for graph in graphs),
        versions={"onnx": onnx.__version__},
        provenance={"licence": "Apache-2.0", "name": "Prüfling"},
    )


@pytest.fixture(scope="session")
def make_deblurrer() -> Callable[..., Deblurrer]:
    """A maker of deblurrers whose network is a function of N×H×W×3 tiles of ``io``, uint8 if left out."""

    def make(network: Network, limits: TileLimits, io: Io = "uint8", **options: Any) -> Deblurrer:
        bundle = Bundle(folder=Path(), manifest=manifest_of(Path(), ()))
        return Deblurrer(bundle, Selection(backend=FunctionBackend(network, limits, io), passed_over=()), **options)

    return make


@pytest.fixture(scope="session")
def inverting_graph() -> bytes:
    """An ONNX graph of the image contract that gives 255 - x."""
    shape = ["batch", "height", "width", 3]
    full = helper.make_tensor("full", TensorProto.FLOAT, [], [255.0])
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["full", "levels"], ["inverted"]),
        helper.make_node("Cast", ["inverted"], [OUTPUT_NAME], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "inverting",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.UINT8, shape)],
        [full],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def bundle_folder(tmp_path: Path, inverting_graph: bytes) -> Path:
    """A whole bundle with the inverting graph as ``fp32.onnx``."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "fp32.onnx").write_bytes(inverting_graph)
    save_manifest(manifest_of(folder, (GraphEntry(path="fp32.onnx", precision="fp32", io="uint8", opset=18),)), folder)
    return folder


@pytest.fixture(scope="session")
def inverting_float_graph() -> bytes:
    """An ONNX graph of the image contract that gives 1 - x for float32 pictures."""
    shape = ["batch", "height", "width", 3]
    graph = helper.make_graph(
        [helper.make_node("Sub", ["one", INPUT_NAME], [OUTPUT_NAME])],
        "inverting",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, shape)],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def deep_bundle_folder(bundle_folder: Path, inverting_float_graph: bytes) -> Path:
    """The bundle of ``bundle_folder`` with a graph of float pictures beside the other."""
    (bundle_folder / "float.onnx").write_bytes(inverting_float_graph)
    graphs = (
        GraphEntry(path="fp32.onnx", precision="fp32", io="uint8", opset=18),
        GraphEntry(path="float.onnx", precision="fp32", io="float32", opset=18),
    )
    save_manifest(manifest_of(bundle_folder, graphs), bundle_folder)
    return bundle_folder


@pytest.fixture
def noise() -> Callable[..., PictureArray]:
    """A maker of random pictures of a shape, the same ones on each run."""

    def make(*shape: int) -> PictureArray:
        return np.random.default_rng(shape).integers(0, 256, shape, np.uint8)

    return make
