"""Exported graphs against PyTorch: contract, precision, dynamic sizes, metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan.evaluation.evaluate import deblur_with_network
from msan_export.artifact import OnnxError, Precision, metadata_of, read_exported
from msan_export.onnx import export_onnx
from msan_runtime.attention import Attention
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, Io

SIZES = [(8, 8), (64, 96), (40, 24), (8, 200)]

WINDOWS = Attention(window_px=48)
"""Six keys a side in blocks of three: SIZES hold less than a window, whole blocks and broken ones."""


@pytest.fixture(scope="module")
def exported(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Precision, Io], Path]:
    """The tiny network in every form."""
    folder = tmp_path_factory.mktemp("onnx")
    forms: list[tuple[Precision, Io]] = [("fp32", "uint8"), ("fp16", "uint8"), ("fp32", "float32"), ("fp16", "float32")]
    return {
        (precision, io): export_onnx(tiny, folder / f"{precision}-{io}.onnx", precision=precision, io=io).path
        for precision, io in forms
    }


@pytest.fixture(scope="module")
def windowed(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The tiny network with attention in windows."""
    folder = tmp_path_factory.mktemp("windowed")
    precisions: list[Precision] = ["fp32", "fp16"]
    return {
        precision: export_onnx(tiny, folder / f"{precision}.onnx", precision=precision, attention=WINDOWS).path
        for precision in precisions
    }


def run(path: Path, pictures: npt.NDArray[Any]) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: pictures})[0])


def pictures_of(height: int, width: int, count: int = 1) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_fp32_uint8_graph_equals_pytorch_within_a_level(
    exported: dict[tuple[Precision, Io], Path], tiny: Checkpoint, height: int, width: int
) -> None:
    picture = pictures_of(height, width)
    expected = deblur_with_network(network_from_checkpoint(tiny), picture[0])
    found = run(exported["fp32", "uint8"], picture)
    assert found.dtype == np.uint8
    assert found.shape == picture.shape
    assert np.abs(found[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_float_graph_equals_pytorch_within_1e_4(
    exported: dict[tuple[Precision, Io], Path], tiny: Checkpoint, height: int, width: int
) -> None:
    picture = pictures_of(height, width).astype(np.float32) / 255
    with torch.inference_mode():
        expected = network_from_checkpoint(tiny)(torch.from_numpy(picture).permute(0, 3, 1, 2)).clamp(0, 1)
    found = run(exported["fp32", "float32"], picture)
    assert np.abs(found - expected.permute(0, 2, 3, 1).numpy()).max() <= 1e-4


def test_fp16_graph_is_within_50_db_of_pytorch(exported: dict[tuple[Precision, Io], Path], tiny: Checkpoint) -> None:
    picture = pictures_of(64, 96)
    expected = deblur_with_network(network_from_checkpoint(tiny), picture[0]).astype(float)
    error = np.mean((run(exported["fp16", "uint8"], picture)[0] - expected) ** 2)
    assert error <= 255**2 / 10**5


def test_a_batch_gives_what_its_pictures_give_alone(exported: dict[tuple[Precision, Io], Path]) -> None:
    pictures = pictures_of(40, 24, count=3)
    together = run(exported["fp32", "uint8"], pictures).astype(int)
    for index in range(3):
        assert np.abs(together[index] - run(exported["fp32", "uint8"], pictures[index : index + 1])[0]).max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_graph_with_windows_equals_pytorch_with_windows(
    windowed: dict[Precision, Path], tiny: Checkpoint, height: int, width: int
) -> None:
    pictures = pictures_of(height, width, count=2)
    network = network_from_checkpoint(tiny, WINDOWS)
    expected = np.stack([deblur_with_network(network, picture) for picture in pictures])
    found = {precision: run(path, pictures).astype(int) for precision, path in windowed.items()}
    assert np.abs(found["fp32"] - expected).max() <= 1
    assert np.mean((found["fp16"] - expected) ** 2.0) <= 255**2 / 10**5


def test_windows_change_a_picture_larger_than_one_and_no_other(
    windowed: dict[Precision, Path], exported: dict[tuple[Precision, Io], Path]
) -> None:
    for size, changed in [((48, 48), False), ((8, 40), False), ((64, 96), True), ((8, 200), True)]:
        picture = pictures_of(*size)
        difference = run(windowed["fp32"], picture).astype(int) - run(exported["fp32", "uint8"], picture)
        # Where the arithmetic is the same up to its order, hardly a value lies so close to a half.
        assert (np.mean(difference != 0) > 0.01) == changed


def test_attention_is_one_operator_a_stage_with_scale_one(
    exported: dict[tuple[Precision, Io], Path], windowed: dict[Precision, Path]
) -> None:
    for path in (exported["fp32", "uint8"], windowed["fp32"]):
        attention = [node for node in onnx.load(path).graph.node if node.op_type == "Attention"]
        scales = [a.f for node in attention for a in node.attribute if a.name == "scale"]
        assert scales == [1.0, 1.0]


@pytest.mark.parametrize("form", ["exported", "windowed"])
def test_fp16_graph_accumulates_attention_in_fp32_and_stores_fp16(
    form: str, exported: dict[tuple[Precision, Io], Path], windowed: dict[Precision, Path]
) -> None:
    path = exported["fp16", "uint8"] if form == "exported" else windowed["fp16"]
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Attention":
            assert {types[name] for name in node.input} == {TensorProto.FLOAT}
            assert {types[makers[name].input[0]] for name in node.input} == {TensorProto.FLOAT16}
        if node.op_type in ("Conv", "ConvTranspose"):
            assert types[node.output[0]] == TensorProto.FLOAT16


def test_lambda_and_qkv_are_folded(exported: dict[tuple[Precision, Io], Path]) -> None:
    graph = onnx.load(exported["fp32", "uint8"]).graph
    names = [tensor.name for tensor in graph.initializer]
    assert not [name for name in names if "gamma" in name or "query_conv" in name]
    # Two stages of: 3 + 1 strided and 1×1 in attention + 2 a ResBlock × 5 levels + 1 last.
    assert sum(node.op_type == "Conv" for node in graph.node) == 2 * (3 + 2 + 10 + 1)


def test_inputs_and_outputs_are_dynamic_multiples_of_8(
    exported: dict[tuple[Precision, Io], Path], windowed: dict[Precision, Path]
) -> None:
    for path in (exported["fp16", "uint8"], windowed["fp16"]):
        graph = onnx.load(path).graph
        for value in (*graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            assert [bool(dim.dim_param) for dim in dims] == [True, True, True, False]
            assert value.type.tensor_type.elem_type == TensorProto.UINT8


def test_metadata_tells_how_far_attention_looks(
    exported: dict[tuple[Precision, Io], Path], windowed: dict[Precision, Path]
) -> None:
    assert metadata_of(onnx.load(exported["fp32", "float32"]))["attention"] == "global"
    assert {metadata_of(onnx.load(path))["attention"] for path in windowed.values()} == {"window:48"}


def test_metadata_tells_spec_precision_contract_and_checkpoint(
    exported: dict[tuple[Precision, Io], Path], tiny: Checkpoint
) -> None:
    model = onnx.load(exported["fp16", "uint8"])
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(metadata["msan.spec"]) == tiny.spec.to_dict()
    assert metadata["msan.precision"] == "fp16"
    assert metadata["msan.contract_version"] == "1"
    assert metadata["msan.checkpoint_sha256"] == tiny.sha256
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]


def test_graphs_hold_no_path_of_the_exporting_machine(exported: dict[tuple[Precision, Io], Path]) -> None:
    for path in exported.values():
        data = path.read_bytes()
        assert b".py" not in data
        assert str(Path(torch.__file__).parent).encode() not in data


def test_exporting_twice_gives_the_same_bytes(
    exported: dict[tuple[Precision, Io], Path], tiny: Checkpoint, tmp_path: Path
) -> None:
    again = export_onnx(tiny, tmp_path / "again.onnx", precision="fp16").path
    assert again.read_bytes() == exported["fp16", "uint8"].read_bytes()


def test_reading_a_foreign_file_says_what_it_is_not(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a graph")
    with pytest.raises(OnnxError, match=r"text\.onnx"):
        read_exported(text)
    with pytest.raises(OnnxError, match=r"missing\.onnx"):
        read_exported(tmp_path / "missing.onnx")


def test_a_graph_that_msan_did_not_export_is_refused(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    path = tmp_path / "foreign.onnx"
    onnx.save(cast(Any, onnx.helper.make_model(graph)), path)
    with pytest.raises(OnnxError, match="not made by msan export"):
        read_exported(path)
