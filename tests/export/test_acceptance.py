"""Verification fails when it should: changed weights, changed files, another checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from tests.export.tampering import change_initializer, failures, graph_file, rehash

from msan.checkpoint import Checkpoint
from msan.spec import ModelSpec
from msan_export.acceptance.cases import sample_cases, sized
from msan_export.acceptance.thresholds import ThresholdsError, read_thresholds
from msan_export.acceptance.verdict import Case
from msan_export.acceptance.verify import QUICK, verify_bundle
from msan_export.bundle import deploy
from msan_export.engine import EngineSpec
from msan_export.report.document import parity_json
from msan_runtime.attention import Attention
from msan_runtime.errors import BundleError
from msan_runtime.manifest import load_manifest, save_manifest
from msan_runtime.targets import capabilities_named


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


CASES = [Case(name="small", picture=sized(sample_cases()[0].picture, 139, 203))]
"""Small, and wider than a window of 64 px."""


def test_a_deployed_bundle_passes_and_says_what_was_not_run(tiny: Checkpoint, bundle: Path) -> None:
    report = verify_bundle(tiny, bundle, sample_cases(), QUICK)
    assert report.passed
    compared = [check for check in report.checks if check.psnr_db is not None]
    # Two graphs, each compared as uint8 and before rounding, and one of float pictures, on three samples; in all three
    # both sub-networks' outputs; and the FP16 graph node by node, on parts of all samples at once.
    assert len(compared) == (2 * 2 + 1 + 3 * 2) * 3 + 1
    assert len({check.case for check in compared}) == 3 + 1


@pytest.fixture(scope="module")
def windowed_bundle(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed") / "tiny"
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    return deploy(tiny, folder, spec, CASES, attention=Attention(window_px=64)).folder


def test_a_bundle_with_windows_is_compared_with_the_network_with_windows(
    tiny: Checkpoint, windowed_bundle: Path, tmp_path: Path
) -> None:
    assert load_manifest(windowed_bundle).attention == "window:64"
    assert verify_bundle(tiny, windowed_bundle, CASES, QUICK).passed
    lying = Path(shutil.copytree(windowed_bundle, tmp_path / "bundle"))
    save_manifest(replace(load_manifest(lying), attention="global"), lying)
    assert {("fp32.float.onnx", "float"), ("fp32.onnx", "float")} <= failures(verify_bundle(tiny, lying, CASES, QUICK))


def flip(values: np.ndarray) -> None:
    values.flat[17] = -values.flat[17]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_flipped_weight_fails_even_with_a_matching_hash(tiny: Checkpoint, bundle: Path, precision: str) -> None:
    path = graph_file(bundle, precision)
    change_initializer(path, "layer4.0.conv1.weight", flip)
    rehash(bundle, path)
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    assert not report.passed
    assert (f"{precision}.onnx", "weights") in failures(report)


def test_the_graph_of_float_pictures_is_held_to_the_bound_of_fp32(tiny: Checkpoint, bundle: Path) -> None:
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    checks = [check for check in report.checks if check.subject.endswith(".fp32.float.onnx") and check.threshold]
    assert len(checks) == 3
    assert {check.quantity for check in checks} == {"float", "d1", "d2"}
    assert {check.threshold for check in checks} == {read_thresholds().float_fp32}


def test_a_changed_bias_in_the_graph_of_float_pictures_fails_on_pictures(tiny: Checkpoint, bundle: Path) -> None:
    path = next(bundle.glob("*.fp32.float.onnx"))

    def brighten(values: np.ndarray) -> None:
        values += 2e-3

    # The last layer of the last sub-network: half a grey level more, which no uint8 bound would see.
    change_initializer(path, "edcoder2.layer11.bias", brighten)
    rehash(bundle, path)
    assert failures(verify_bundle(tiny, bundle, CASES, QUICK)) == {
        ("fp32.float.onnx", "weights"),
        ("fp32.float.onnx", "float"),
        ("fp32.float.onnx", "d2"),
        ("fp32.float.onnx", "first node"),
    }


def test_one_flipped_weight_fails_by_the_hash_too(tiny: Checkpoint, bundle: Path) -> None:
    change_initializer(graph_file(bundle, "fp32"), "layer4.0.conv1.weight", flip)
    assert {("fp32.onnx", "hash"), ("fp32.onnx", "weights")} <= failures(verify_bundle(tiny, bundle, CASES, QUICK))


def test_a_changed_constant_fails_on_pictures(tiny: Checkpoint, bundle: Path) -> None:
    path = graph_file(bundle, "fp32")
    model = onnx.load(path)
    division = next(node for node in model.graph.node if node.op_type == "Div" and node.name == "node_div")
    name = division.input[1]

    def dim(values: np.ndarray) -> None:
        values[...] = 250.0

    change_initializer(path, name, dim)
    rehash(bundle, path)
    assert {("fp32.onnx", "float"), ("fp32.onnx", "uint8")} <= failures(verify_bundle(tiny, bundle, CASES, QUICK))


def test_nan_is_a_failure(tiny: Checkpoint, bundle: Path) -> None:
    path = graph_file(bundle, "fp16")

    def poison(values: np.ndarray) -> None:
        values.flat[0] = np.nan

    change_initializer(path, "layer11.bias", poison)
    rehash(bundle, path)
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    assert ("fp16.onnx", "float") in failures(report)
    assert any("NaN" in check.detail for check in report.checks)


def test_another_checkpoint_of_the_same_spec_fails(
    tiny: Checkpoint, bundle: Path, make_checkpoint: Callable[[ModelSpec], Checkpoint]
) -> None:
    other = make_checkpoint(tiny.spec)
    scaled = {name: tensor * 1.01 for name, tensor in other.state.items()}
    report = verify_bundle(replace(other, state=scaled), bundle, CASES, QUICK)
    assert ("fp32.onnx", "weights") in failures(report)


def test_a_checkpoint_of_another_spec_fails(bundle: Path, make_checkpoint: Callable[[ModelSpec], Checkpoint]) -> None:
    report = verify_bundle(make_checkpoint(ModelSpec(stages=1, base_channels=4, resblocks=1)), bundle, CASES, QUICK)
    assert ("manifest", "origin") in {(check.subject, check.quantity) for check in report.checks if not check.passed}
    assert not report.passed


def test_a_changed_engine_fails_by_its_hash(tiny: Checkpoint, bundle: Path) -> None:
    engine = next(bundle.glob("*.engine"))
    data = bytearray(engine.read_bytes())
    data[1000] ^= 1
    engine.write_bytes(data)
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    assert ("rtx.engine", "hash") in failures(report)


@pytest.mark.parametrize("data", [b"", b"garbage" * 100], ids=["empty", "garbage"])
def test_what_is_no_engine_fails_even_with_a_matching_hash(tiny: Checkpoint, bundle: Path, data: bytes) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = next(bundle.glob("*.engine"))
    engine.write_bytes(data)
    rehash(bundle, engine)
    assert ("rtx.engine", "engine") in failures(verify_bundle(tiny, bundle, CASES, QUICK))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"], ids=["cut", "longer"])
def test_an_engine_of_another_size_fails_even_with_a_matching_hash(
    tiny: Checkpoint, bundle: Path, change: Callable[[bytes], bytes]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = next(bundle.glob("*.engine"))
    engine.write_bytes(change(engine.read_bytes()))
    rehash(bundle, engine)
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    assert ("rtx.engine", "engine") in failures(report)
    assert "its header says" in " ".join(check.detail for check in report.checks)


def test_an_engine_of_another_release_is_found_without_a_gpu(tiny: Checkpoint, bundle: Path) -> None:
    manifest = load_manifest(bundle)
    (entry,) = manifest.engines
    save_manifest(replace(manifest, engines=(replace(entry, flavour_version="1.2.3.4"),)), bundle)
    assert ("rtx.engine", "engine") in failures(verify_bundle(tiny, bundle, CASES, QUICK))  # the file beside it differs
    beside = bundle / f"{entry.path}.json"
    beside.write_text(beside.read_text().replace(entry.flavour_version, "1.2.3.4"))
    rehash(bundle, beside)
    checks = verify_bundle(tiny, bundle, CASES, QUICK).checks
    (check,) = (check for check in checks if check.quantity == "engine")
    assert check.passed is None
    assert "1.2.3.4 built it" in check.detail


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (3, 5)])
def test_a_replaced_self_test_fails_even_with_a_matching_hash(
    tiny: Checkpoint, bundle: Path, size: tuple[int, int]
) -> None:
    test = load_manifest(bundle).self_test
    assert test is not None
    Image.new("RGB", size, (255, 0, 0)).save(bundle / test.deblurred)
    rehash(bundle, bundle / test.deblurred)
    assert ("manifest", "self-test") in failures(verify_bundle(tiny, bundle, CASES, QUICK))


def test_a_bundle_without_a_self_test_is_told_to_be_an_old_one(tiny: Checkpoint, bundle: Path) -> None:
    save_manifest(replace(load_manifest(bundle), self_test=None), bundle)
    (check,) = (check for check in verify_bundle(tiny, bundle, CASES, QUICK).checks if check.quantity == "self-test")
    assert check.passed is None
    assert "schema 1" in check.detail


@pytest.mark.parametrize("data", [b"", b"\x08garbage" * 100], ids=["empty", "garbage"])
def test_what_is_no_graph_fails_even_with_a_matching_hash(tiny: Checkpoint, bundle: Path, data: bytes) -> None:
    path = graph_file(bundle, "fp16")
    path.write_bytes(data)
    rehash(bundle, path)
    assert ("fp16.onnx", "weights") in failures(verify_bundle(tiny, bundle, CASES, QUICK))


def test_a_bundle_without_graphs_fails_and_says_so(tiny: Checkpoint, bundle: Path) -> None:
    save_manifest(replace(load_manifest(bundle), graphs=(), engines=()), bundle)
    assert ("manifest", "graphs") in failures(verify_bundle(tiny, bundle, CASES, QUICK))


def test_a_folder_without_manifest_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        verify_bundle(tiny, tmp_path, CASES, QUICK)


def test_the_json_report_is_strict_json_with_every_check(tiny: Checkpoint, bundle: Path) -> None:
    report = verify_bundle(tiny, bundle, CASES, QUICK)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads(parity_json(report), parse_constant=refuse)
    assert body["passed"] is True
    assert len(body["checks"]) == len(report.checks)
    assert body["checks"][-1]["threshold"]["psnr_db"] in (50.0, 100.0)


def test_samples_are_square_odd_and_tall() -> None:
    shapes = [case.picture.shape[:2] for case in sample_cases()]
    assert any(height == width for height, width in shapes)
    assert any(height % 8 and width % 8 for height, width in shapes)
    assert any(height > 4 * width for height, width in shapes)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no JPEG"):
        sample_cases(tmp_path)


def test_a_network_with_biases_of_zero_passes(tiny: Checkpoint, tmp_path: Path) -> None:
    state = {name: torch.zeros_like(v) if name.endswith(".bias") else v for name, v in tiny.state.items()}
    spec = EngineSpec(capabilities=capabilities_named("rtx30"))
    assert deploy(replace(tiny, state=state), tmp_path / "bundle", spec, CASES).report.passed


# Node by node: what a type cannot hold, and where it begins


def plant_overflow(path: Path, share: float, factors: tuple[float, ...]) -> None:
    """Multiply behind a convolution by factors that end in 1, but overflow FP16 on the way."""
    model = onnx.load(path)
    convolutions = [index for index, node in enumerate(model.graph.node) if node.op_type == "Conv"]
    index = convolutions[int(share * (len(convolutions) - 1))]
    output = model.graph.node[index].output[0]
    names = [f"planted_{step}" for step in range(len(factors))] + [output]
    model.graph.node[index].output[0] = names[0]
    for step, factor in enumerate(factors):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(factor, np.float16), f"factor_{step}"))
        node = onnx.helper.make_node("Mul", [names[step], f"factor_{step}"], [names[step + 1]], name=f"mul_{step}")
        model.graph.node.insert(index + 1 + step, node)
    onnx.save(model, path)


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_an_overflow_of_fp16_is_found_and_named(tiny: Checkpoint, bundle: Path, share: float) -> None:
    path = graph_file(bundle, "fp16")
    plant_overflow(path, share, (6e4, 100.0, 1 / 6e4, 0.01))
    rehash(bundle, path)
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    assert {("fp16.onnx", "typed"), ("fp16.onnx", "first node")} <= failures(report)
    assert not report.passed
    named = next(check.detail for check in report.checks if check.quantity == "first node")
    assert named.startswith(("first node off is mul_0 (Mul)", "first node off is mul_1 (Mul)"))
    assert "infinity" in named or "NaN" in named


@pytest.mark.parametrize(("precision", "place"), [("fp32", 0), ("fp32", -1), ("fp16", 5)])
def test_the_node_of_a_changed_weight_is_named(tiny: Checkpoint, bundle: Path, precision: str, place: int) -> None:
    path = graph_file(bundle, precision)
    model = onnx.load(path)
    node = [node for node in model.graph.node if node.op_type == "Conv"][place]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)
    rehash(bundle, path)
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    named = [check.detail for check in report.checks if check.quantity == "first node"]
    assert len(named) == 1
    assert named[0].startswith(f"first node off is {node.name} (Conv): its error is ")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_node_that_blackens_the_saved_picture_is_named(tiny: Checkpoint, bundle: Path, precision: str) -> None:
    path = graph_file(bundle, precision)
    model = onnx.load(path)
    output = model.graph.output[0].name
    next(node for node in model.graph.node if output in node.output).output[0] = "light"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.uint8), "zero"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["light", "zero"], [output], name="blackens"))
    onnx.save(model, path)
    rehash(bundle, path)
    checks = verify_bundle(tiny, bundle, CASES, QUICK).checks
    assert [check.detail for check in checks if check.quantity == "first node" and "blackens (Mul)" in check.detail]


def test_a_good_bundle_names_no_node_and_repeats_itself(tiny: Checkpoint, bundle: Path) -> None:
    report = verify_bundle(tiny, bundle, CASES, QUICK)
    quantities = [check.quantity for check in report.checks if check.passed]
    assert "first node" not in {check.quantity for check in report.checks}
    assert quantities.count("twice") == quantities.count("fixed") == 3
    assert quantities.count("typed") == 1


def test_a_graph_that_does_not_repeat_itself_fails(tiny: Checkpoint, bundle: Path) -> None:
    """Noise of some levels on the picture that is saved: another one at each run."""
    path = graph_file(bundle, "fp32")
    model = onnx.load(path)
    clip = next(node for node in reversed(model.graph.node) if node.op_type == "Clip")
    before, clip.input[0] = clip.input[0], "noisy"
    index = list(model.graph.node).index(clip)
    noise = onnx.helper.make_node("RandomNormalLike", [before], ["noise"], scale=0.02, dtype=1, name="noise")
    model.graph.node.insert(index, onnx.helper.make_node("Add", [before, "noise"], ["noisy"], name="add_noise"))
    model.graph.node.insert(index, noise)
    onnx.save(model, path)
    rehash(bundle, path)
    assert ("fp32.onnx", "twice") in failures(verify_bundle(tiny, bundle, CASES, QUICK))


# Thresholds


def test_other_thresholds_are_taken_and_shown(tiny: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text("[uint8]\npsnr_db = 95\n")
    report = verify_bundle(tiny, bundle, CASES, replace(QUICK, thresholds=read_thresholds(strict)))
    assert ("fp16.onnx", "typed") in failures(report)
    shown = {check.threshold.psnr_db for check in report.checks if check.threshold and check.quantity == "uint8"}
    assert shown == {95.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[uint9]\npsnr_db = 3", "there are the tables float_fp32"),
        ("uint8 = 3", "there are the tables"),
        ("[uint8]\npsnr = 3", "there are max_difference, psnr_db"),
        ("[uint8]\npsnr_db = '3'", "is a number of 0 or more"),
        ("[uint8]\npsnr_db = -1", "is a number of 0 or more"),
        ("[uint8]\npsnr_db = nan", "is a number of 0 or more"),
        ("[steady]\nmax_difference = true", "is a number of 0 or more"),
        ("no toml", "cannot read the thresholds"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "thresholds.toml"
    path.write_text(text)
    with pytest.raises(ThresholdsError, match=words):
        read_thresholds(path)
    with pytest.raises(ThresholdsError, match="cannot read"):
        read_thresholds(tmp_path / "none.toml")
