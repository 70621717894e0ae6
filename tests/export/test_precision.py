"""INT8 and FP8 from checkpoint to engine: what is built is proved, what was changed is noticed, ``inspect`` says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from msan.checkpoint import Checkpoint
from msan_calib.calibrate import CalibrationOptions, calibrate
from msan_calib.files import finished_graph
from msan_calib.network import load_network
from msan_calib.samples import SampleOptions, SampleSet, choose_samples
from msan_calib.walk import Walker
from msan_export.acceptance.cases import sample_cases
from msan_export.acceptance.verify import QUICK, verify_bundle
from msan_export.artifact import OnnxError, claims_of, read_exported
from msan_export.bundle import Calibration, deploy
from msan_export.engine import BuildError, EngineSpec, LayerType, build_engine, check_types
from msan_export.inspection import InspectionError, inspect, onnx_layers, validity_words
from msan_runtime.backends.ort import open_session
from msan_runtime.errors import CheckFailedError
from msan_runtime.manifest import load_manifest
from msan_runtime.targets import FAMILIES, capabilities_named

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this machine")


@pytest.fixture(scope="module")
def samples() -> SampleSet:
    return choose_samples(options=SampleOptions(count=2, size_px=64))


@pytest.fixture(scope="module")
def int8(tiny: Checkpoint, samples: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle of ``tiny``."""
    options = CalibrationOptions(precision="int8", budget_db=3.0)
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    return deploy(tiny, folder, spec, sample_cases(), calibration=Calibration(samples=samples, options=options)).folder


@pytest.fixture(scope="module")
def fp8(int8: Path, samples: SampleSet) -> onnx.ModelProto:
    """The same network in FP8."""
    network = load_network(graph_of(int8, "fp32"))
    return finished_graph(calibrate(network, samples, CalibrationOptions(precision="fp8", budget_db=3.0)))


def graph_of(bundle: Path, precision: str) -> Path:
    return bundle / next(entry.path for entry in load_manifest(bundle).graphs if entry.precision == precision)


def test_an_int8_bundle_carries_its_choice_and_its_proof(int8: Path, samples: SampleSet) -> None:
    manifest = load_manifest(int8)
    assert {entry.precision for entry in manifest.graphs} == {"fp32", "fp16", "int8"}
    engine = manifest.engines[0]
    assert engine.precision == "int8"
    body = json.loads((int8 / "calibration.json").read_text())
    assert engine.layer_types["convolution int8"] == len(body["quantized"]["convolutions"])
    assert manifest.provenance["calibration_samples_sha256"] == samples.sha256 == body["samples"]["sha256"]
    assert "convolutions" in manifest.provenance["quantized"]
    assert "calibration.json" in {file.path for file in manifest.files}


def test_the_int8_bundle_is_verified_weight_by_weight(int8: Path, tiny: Checkpoint) -> None:
    report = verify_bundle(tiny, int8, sample_cases(), QUICK)
    assert report.passed
    detail = next(check.detail for check in report.checks if check.quantity == "weights" and "int8" in check.subject)
    assert "to half a step of int8" in detail


def test_a_changed_int8_weight_is_noticed(int8: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(int8, copy)
    path = graph_of(copy, "int8")
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("_int8"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = values.flat[0] - 2 if values.flat[0] > 0 else values.flat[0] + 2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    report = verify_bundle(tiny, copy, sample_cases(), QUICK)
    failed = {(check.subject, check.quantity) for check in report.checks if check.passed is False}
    assert failed == {(path.name, "hash"), (path.name, "weights")}


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"h100"}))
def test_int8_is_built_for_every_capability(family: str, int8: Path) -> None:
    spec = EngineSpec(capabilities=capabilities_named(family))
    engine = build_engine(graph_of(int8, "int8").read_bytes(), spec, "int8")
    assert engine.layer_types["convolution int8"] > 0
    assert set(engine.layer_types) == {"attention fp16", "convolution fp16", "convolution int8", "deconvolution fp16"}


def test_fp8_is_built_for_ada_and_later_and_refused_for_ampere(fp8: onnx.ModelProto) -> None:
    graph = fp8.SerializeToString()
    engine = build_engine(graph, EngineSpec(capabilities=capabilities_named("rtx40,rtx50")), "fp8")
    assert engine.layer_types["convolution fp8"] > 0
    with pytest.raises(BuildError, match=r"sm_86 has no FP8\. It needs sm_89 or later"):
        build_engine(graph, EngineSpec(capabilities=capabilities_named("rtx30,rtx40")), "fp8")


def test_fp8_is_computed_as_the_graph_says(fp8: onnx.ModelProto, samples: SampleSet) -> None:
    """ONNX Runtime's own rewriting of FP8 pairs would be 20 dB away."""
    feed = {"blurred": samples.calibration[0].blurred[None]}
    expected = Walker(fp8).run(feed)["deblurred"].astype(int)
    session = open_session(fp8.SerializeToString(), "CPUExecutionProvider")
    found = np.asarray(session.run(None, feed)[0]).astype(int)
    assert np.mean(np.square(found - expected)) < 1.0


def test_a_listed_convolution_that_is_not_int8_is_a_failed_build(int8: Path) -> None:
    model = onnx.load(graph_of(int8, "fp16"))
    told = {prop.key: prop.value for prop in onnx.load(graph_of(int8, "int8")).metadata_props}
    onnx.helper.set_model_props(model, told)
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    with pytest.raises(CheckFailedError, match=r"convolutions that should be int8 are not: \S+ is fp16"):
        build_engine(model.SerializeToString(), spec, "int8")
    with pytest.raises(CheckFailedError, match="are not fp16"):
        build_engine(graph_of(int8, "int8").read_bytes(), spec, "fp16")


def test_islands_may_be_fp32_if_the_graph_lists_them_and_nothing_else() -> None:
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, {"msan.islands": '{"a": "it overflows"}', "msan.quantized": "[]"})
    claims = claims_of(model)
    island, other = (LayerType(kind="convolution", name=name, dtype="fp32") for name in "ab")
    check_types((island,), "fp16", claims)
    with pytest.raises(CheckFailedError, match="convolution b is fp32"):
        check_types((island, other), "fp16", claims)
    onnx.helper.set_model_props(model, {"msan.islands": "no json"})
    with pytest.raises(OnnxError, match="calibrate it again"):
        claims_of(model)


def test_a_calibrated_graph_is_one_that_build_takes(int8: Path) -> None:
    _, metadata = read_exported(graph_of(int8, "int8"))
    assert (metadata.precision, metadata.io) == ("int8", "uint8")


def test_inspect_says_of_the_graph_what_the_engine_proves(int8: Path) -> None:
    found = inspect(int8)
    assert found.kind == "bundle"
    by_name = {part.path: part for part in found.parts}
    graph, engine = by_name[graph_of(int8, "int8").name], by_name[load_manifest(int8).engines[0].path]
    assert graph.layer_counts == engine.layer_counts == load_manifest(int8).engines[0].layer_types
    body = json.loads((int8 / "calibration.json").read_text())
    share = graph.gflop["int8"] / sum(graph.gflop.values())
    assert share == pytest.approx(body["quantized"]["flops_share"], rel=0.01)
    assert "uint8" in graph.facts["takes"]
    assert any("attention accumulates in FP32" in why for why in graph.islands.values())
    assert "does not run here" in engine.facts["here"] or "runs here" in engine.facts["here"]


def test_inspect_takes_a_single_engine_and_graphs_of_other_makers(int8: Path, tmp_path: Path) -> None:
    engine = int8 / load_manifest(int8).engines[0].path
    assert inspect(engine).facts["compute capabilities"] == "8.6"
    alone = tmp_path / "alone.engine"
    alone.write_bytes(engine.read_bytes())
    assert "not known" in inspect(alone).facts["types"]
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="one")
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1, 3, 16, 16])], [value("y", 1, None)], [weight])
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(other, tmp_path / "other.onnx")
    found = inspect(tmp_path / "other.onnx")
    assert found.layer_counts == {"convolution fp32": 1}
    assert found.gflop["fp32"] == pytest.approx(2 * 16 * 16 * 4 * 3 / 1e9)
    assert onnx_layers(onnx.load(tmp_path / "other.onnx"))[0].name == "one"


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("text"), lambda _p: None])
def test_what_cannot_be_inspected_is_said(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "thing")
    with pytest.raises(InspectionError, match=r"is not a bundle|is neither an ONNX|cannot read"):
        inspect(tmp_path / "thing")


def test_validity_is_decoded_into_words() -> None:
    assert validity_words("VALID", 0) == "runs here"
    words = validity_words("INVALID", 1 | 4)
    assert words == "does not run here: it was built by another release of TensorRT-RTX, the CUDA driver is too old"
