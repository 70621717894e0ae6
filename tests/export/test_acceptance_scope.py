"""What verification covers: sub-networks, sizes, backends, tiles, types, black pictures, and data sets of pairs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.export.tampering import change_initializer, failures, graph_file, rehash, relabel_engine

from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan.evaluation.methods import deblur_with_network
from msan.evaluation.sets import find_evaluation_sets
from msan_export.acceptance import as_run, pairs, verify
from msan_export.acceptance.cases import sample_cases, shape_cases, sized
from msan_export.acceptance.pictures import EXHIBITS, Gallery
from msan_export.acceptance.reference import padded
from msan_export.acceptance.thresholds import read_thresholds
from msan_export.acceptance.verdict import Case, Check, PairScores, ParityReport
from msan_export.acceptance.verify import QUICK, Scope, verify_bundle
from msan_runtime.attention import Attention
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle
from msan_runtime.contract import PictureArray
from msan_runtime.manifest import Profile, load_manifest
from msan_runtime.memory import run_bytes
from msan_runtime.select import Selection, select_backend

BOUNDS = read_thresholds()
PHOTOGRAPH = sample_cases()[0].picture
SMALL = [Case(name="small", picture=sized(PHOTOGRAPH, 61, 83))]
PROFILE = Profile(min=(1, 8, 16), opt=(1, 64, 72), max=(1, 96, 120))


@pytest.fixture(scope="module")
def small_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest names an engine of small tiles, so that its largest is soon compared."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("small") / "bundle"))
    relabel_engine(folder, profile=PROFILE)
    return folder


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def whole(tiny: Checkpoint, small_bundle: Path) -> ParityReport:
    return verify_bundle(tiny, small_bundle, SMALL)


def of(report: ParityReport, **wanted: object) -> list[Check]:
    return [check for check in report.checks if all(getattr(check, name) == value for name, value in wanted.items())]


# Sub-networks


def test_every_sub_network_is_compared_in_every_graph(whole: ParityReport) -> None:
    assert whole.passed
    graphs = {check.subject for check in of(whole, quantity="d1")}
    assert graphs == {check.subject for check in of(whole, quantity="d2")}
    assert len(graphs) == 3
    assert not of(whole, quantity="d3")
    fp16 = next(check for check in of(whole, quantity="d1") if check.subject.endswith(".fp16.onnx"))
    assert fp16.threshold is not None
    assert fp16.threshold.max_difference == pytest.approx(3 / 255)


def test_an_offset_in_an_early_sub_network_is_measured_there(tiny: Checkpoint, bundle: Path) -> None:
    path = graph_file(bundle, "fp32")

    def lift(values: np.ndarray) -> None:
        values += 0.01

    change_initializer(path, "edcoder1.layer11.bias", lift)
    rehash(bundle, path)
    report = verify_bundle(tiny, bundle, SMALL, QUICK)
    (check,) = [check for check in of(report, quantity="d1") if check.subject == path.name]
    assert check.passed is False
    # A bias of the last layer lifts the whole output by just as much; told are shares of the largest value, if over 1.
    picture = torch.from_numpy(padded(SMALL[0].picture)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        first = network_from_checkpoint(tiny, Attention(window_px=384)).stage_outputs(picture)[0]
    assert check.max_difference == pytest.approx(0.01 / max(1.0, float(first.abs().max())), rel=1e-3)


# Sizes and backends


def test_the_sizes_of_the_profile_are_compared(whole: ParityReport) -> None:
    cases = {check.case for check in of(whole, quantity="uint8") if check.subject.endswith(".fp32.onnx")}
    assert cases == {"small", "min 8×16", "opt 64×72", "max 96×120"}


def test_sizes_that_are_equal_come_once() -> None:
    one = Profile(min=(1, 64, 64), opt=(1, 64, 64), max=(4, 64, 64))
    assert [case.name for case in shape_cases(one, PHOTOGRAPH)] == ["min 64×64"]


@pytest.mark.parametrize("size", [(8, 8), (37, 500), (700, 900), (320, 320)])
def test_pictures_of_any_size_are_made_of_a_photograph(size: tuple[int, int]) -> None:
    made = sized(PHOTOGRAPH, *size)
    assert made.shape == (*size, 3)
    assert set(np.unique(made)) <= set(np.unique(PHOTOGRAPH))
    assert made.flags.c_contiguous


def test_every_backend_is_run_or_says_why_not(whole: ParityReport) -> None:
    assert {check.subject.removeprefix("backend ") for check in whole.checks if "backend" in check.subject} == {
        "rtx",
        "tensorrt",
        "ort-cuda",
        "openvino-bf16",
        "openvino",
        "ort-cpu",
    }
    tiled = [check for check in of(whole, subject="backend ort-cpu") if check.case.startswith("tiled 520×776")]
    assert [check.detail for check in tiled] == ["in 9 tiles"]
    assert all(check.passed for check in of(whole, subject="backend ort-cpu"))
    for name in ("rtx", "tensorrt", "ort-cuda"):
        for check in of(whole, subject=f"backend {name}", passed=None):
            assert check.detail


class BrightBackend(Backend):
    """A backend that adds levels."""

    name = "ort-cpu"

    def __init__(self, inner: Backend, levels: int) -> None:
        self.device, self.limits, self.precision = inner.device, inner.limits, inner.precision
        self._inner, self._levels = inner, levels

    def infer(self, tiles: PictureArray) -> PictureArray:
        return np.clip(self._inner.infer(tiles).astype(np.int16) + self._levels, 0, 255).astype(np.uint8)


def only_bright(levels: int) -> Callable[..., Selection]:
    """Instead of ``select_backend``: a brighter ``ort-cpu``; the rest as it is."""

    def select(bundle: Bundle, name: str, **options: Any) -> Selection:
        selection = select_backend(bundle, name, **options)
        return replace(selection, backend=BrightBackend(selection.backend, levels)) if name == "ort-cpu" else selection

    return select


def test_a_backend_that_is_off_fails_and_is_looked_into(
    tiny: Checkpoint, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_run, "select_backend", only_bright(9))
    report = verify_bundle(tiny, small_bundle, SMALL, replace(QUICK, backends=True))
    assert not report.passed
    assert {check.subject for check in report.checks if check.passed is False} == {"backend ort-cpu"}
    (named,) = of(report, quantity="first node")
    # What is wrong is not in a node, and that is said.
    assert named.detail.endswith(".fp32.onnx is well")
    assert report.worst[0].subject == "backend ort-cpu"
    assert report.worst[0].passed is False
    levels = report.worst[0].given.astype(int) - report.worst[0].expected
    assert report.worst[0].max_difference == np.abs(levels).max()


def test_a_backend_that_fails_the_self_test_is_a_failure(
    tiny: Checkpoint, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(bundle)
    assert manifest.self_test is not None
    path = bundle / manifest.self_test.deblurred
    with Image.open(path) as image:
        inverted = 255 - np.asarray(image)
    Image.fromarray(inverted).save(path)
    rehash(bundle, path)
    monkeypatch.setattr(as_run, "BACKENDS", ("ort-cpu",))
    report = verify_bundle(tiny, bundle, SMALL, replace(QUICK, backends=True))
    (check,) = of(report, subject="backend ort-cpu")
    assert check.passed is False
    assert "self-test" in check.detail


def test_nothing_of_a_changed_bundle_is_run_on_a_backend(tiny: Checkpoint, bundle: Path) -> None:
    next(bundle.glob("*.rtx.engine")).write_bytes(b"changed")
    report = verify_bundle(tiny, bundle, SMALL, replace(QUICK, backends=True))
    assert ("rtx.engine", "hash") in failures(report)
    assert not [check for check in report.checks if check.subject.startswith("backend")]


def test_a_picture_over_the_memory_is_not_run_whole(
    tiny: Checkpoint, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of it is enough for the second largest.
    there = 2 * run_bytes(load_manifest(small_bundle), 64 * 88)
    monkeypatch.setattr(verify, "memory_bytes", lambda: there)
    report = verify_bundle(tiny, small_bundle, SMALL, Scope(backends=False))
    (check,) = of(report, subject="graphs")
    assert (check.case, check.passed) == ("max 96×120", None)
    assert "GiB" in check.detail
    assert report.passed


def test_the_reference_in_double_precision_is_told_and_nearer(tiny: Checkpoint, small_bundle: Path) -> None:
    reports = {kind: verify_bundle(tiny, small_bundle, SMALL, replace(QUICK, reference=kind)) for kind in KINDS}
    assert all(report.passed for report in reports.values())
    assert "float64" in reports["float64"].settings.reference
    figures = {
        kind: next(check.psnr_db for check in of(report, quantity="d2") if check.subject.endswith(".fp32.onnx"))
        for kind, report in reports.items()
    }
    # Against float32 both sides round, and not the same way.
    assert figures["float64"] != figures["float32"]


KINDS: tuple[Any, ...] = ("float32", "float64")


# Types


def test_types_are_told_of_graphs_and_engines(whole: ParityReport) -> None:
    told = {check.subject.split(".", 1)[1]: check.detail for check in of(whole, section="types")}
    assert "convolution fp16" in told["fp16.onnx"]
    assert "convolution fp32" in told["fp32.onnx"]
    assert told["rtx.engine"] == told["fp16.onnx"]


def test_an_engine_of_other_types_than_its_graph_fails(tiny: Checkpoint, bundle: Path) -> None:
    relabel_engine(bundle, layer_types={"convolution fp8": 3})
    report = verify_bundle(tiny, bundle, SMALL, QUICK)
    assert failures(report) == {("rtx.engine", "types")}
    (check,) = of(report, section="types", passed=False)
    assert "the manifest says 3 convolution fp8" in check.detail


def test_an_fp32_graph_under_the_name_of_fp16_fails(tiny: Checkpoint, bundle: Path) -> None:
    shutil.copyfile(graph_file(bundle, "fp32"), graph_file(bundle, "fp16"))
    rehash(bundle, graph_file(bundle, "fp16"))
    assert ("fp16.onnx", "types") in failures(verify_bundle(tiny, bundle, SMALL, QUICK))


# Pictures


def looked_at(*pictures: tuple[str, PictureArray], psnr_db: float = 60.0) -> Gallery:
    gallery = Gallery(BOUNDS)
    for case, given in pictures:
        check = Check(
            section="pictures",
            subject="x.onnx",
            quantity="uint8",
            case=case,
            passed=True,
            max_difference=2.0,
            psnr_db=psnr_db,
            threshold=BOUNDS.uint8,
        )
        gallery.look(check, PHOTOGRAPH, PHOTOGRAPH, given)
    return gallery


def test_a_black_corner_is_found() -> None:
    holed = PHOTOGRAPH.copy()
    holed[:32, :160] = 0
    (scan,) = looked_at(("whole", PHOTOGRAPH), ("holed", holed)).scans()
    assert scan.passed is False
    assert "of holed is black where the reference is not" in scan.detail
    bright = float((PHOTOGRAPH[:32, :160].max(axis=2) > BOUNDS.uint8.max_difference).sum() / PHOTOGRAPH[..., 0].size)
    assert f"{bright:.2%}" in scan.detail


def test_black_that_should_be_black_passes() -> None:
    night = np.zeros_like(PHOTOGRAPH)
    gallery = Gallery(BOUNDS)
    check = Check(section="pictures", subject="x", quantity="uint8", passed=True)
    gallery.look(check, night, night, night)
    (scan,) = gallery.scans()
    assert scan.passed


def test_the_ten_worst_are_kept_worst_first_around_their_worst_pixel() -> None:
    gallery = Gallery(BOUNDS)
    large = sized(PHOTOGRAPH, 900, 1000)
    for number in np.random.default_rng(1).permutation(25):
        given = large.copy()
        given[800, 990] ^= 255
        check = Check(
            section="pictures",
            subject="x.onnx",
            quantity="uint8",
            case=str(number),
            passed=True,
            max_difference=1.0,
            psnr_db=50.0 + number,
            threshold=BOUNDS.uint8,
        )
        gallery.look(check, large, large, given)
    assert [one.case for one in gallery.worst] == [str(number) for number in range(EXHIBITS)]
    for one in gallery.worst:
        assert one.given.shape == one.expected.shape == one.blurred.shape == (640, 640, 3)
        assert (one.given != one.expected).any()


# Pairs


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of 72×88 px: a photograph's parts, and the same smeared."""
    root = tmp_path_factory.mktemp("pairs")
    for part in ("input", "target"):
        (root / part).mkdir()
    for number in range(4):
        sharp = PHOTOGRAPH[40 * number : 40 * number + 72, 60:148]
        blurred = np.mean([np.roll(sharp, shift, axis=1) for shift in range(3 + number)], axis=0).round()
        Image.fromarray(sharp).save(root / "target" / f"{number}.png")
        Image.fromarray(blurred.astype(np.uint8)).save(root / "input" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def scored(tiny: Checkpoint, small_bundle: Path, pairs_folder: Path) -> ParityReport:
    sets = find_evaluation_sets([pairs_folder])
    return verify_bundle(tiny, small_bundle, SMALL, replace(QUICK, pairs=sets))


def scores_of(report: ParityReport, subject: str) -> PairScores:
    return next(scores for scores in report.pairs if scores.subject.endswith(subject))


def test_pairs_are_scored_before_and_after_as_another_library_scores_them(
    scored: ParityReport, tiny: Checkpoint, pairs_folder: Path
) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    scores = scores_of(scored, ".fp16.onnx")
    assert len(scores.names) == 4
    network = network_from_checkpoint(tiny, Attention(window_px=384))
    for index in range(4):
        blurred, sharp = (np.array(Image.open(pairs_folder / part / f"{index}.png")) for part in ("input", "target"))
        expected = deblur_with_network(network, blurred)
        assert scores.before["psnr_db"][index] == pytest.approx(peak_signal_noise_ratio(sharp, expected), abs=1e-9)
        ssim = structural_similarity(sharp, expected, channel_axis=2)
        assert scores.before["ssim_skimage"][index] == pytest.approx(ssim, abs=1e-9)
    assert scored.passed


def test_the_change_has_the_interval_of_a_t_test(scored: ParityReport) -> None:
    from scipy import stats

    scores = scores_of(scored, ".fp16.onnx")
    changes = np.subtract(scores.after["psnr_db"], scores.before["psnr_db"])
    expected = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    assert scores.change["psnr_db"].mean == pytest.approx(changes.mean())
    assert (scores.change["psnr_db"].low, scores.change["psnr_db"].high) == pytest.approx(tuple(expected))


def test_every_backend_and_every_other_precision_is_scored(scored: ParityReport) -> None:
    subjects = {scores.subject for scores in scored.pairs}
    assert "backend ort-cpu" in subjects
    # The FP32 graph is what ort-cpu runs.
    assert [subject[-10:] for subject in subjects if "onnx" in subject] == [".fp16.onnx"]
    assert {check.subject for check in of(scored, section="pairs")} == subjects


def test_a_loss_over_the_bound_fails(
    tiny: Checkpoint, small_bundle: Path, pairs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_run, "select_backend", only_bright(-40))
    monkeypatch.setattr(as_run, "BACKENDS", ("ort-cpu",))
    sets = find_evaluation_sets([pairs_folder], limit=2)
    report = verify_bundle(tiny, small_bundle, SMALL, replace(QUICK, pairs=sets))
    scores = scores_of(report, "backend ort-cpu")
    assert len(scores.names) == 2
    assert -scores.change["psnr_db"].mean > BOUNDS.pairs_loss_db["fp32"]
    assert scores.passed is False
    (check,) = of(report, section="pairs", subject="backend ort-cpu")
    assert check.passed is False
    assert "(loss ≤ 0.01 dB)" in check.detail
    assert not report.passed


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ([0.001, 0.002, 0.001], True),
        ([-0.5, -0.4, -0.6], False),
        ([0.3, -0.2, 0.1], None),  # nothing is lost on average, and nothing is shown by three
        ([-0.005], True),
        ([-0.015], False),
    ],
)
def test_few_uneven_pairs_are_no_failure_and_no_pass(changes: list[float], passed: bool | None) -> None:
    measured = pairs.Measured()
    for index, change in enumerate(changes):
        measured.names.append(str(index))
        measured.before.append({"psnr_db": 30.0, "ssim_matlab3d": 0.9, "ssim_skimage": 0.9})
        measured.after.append({"psnr_db": 30.0 + change, "ssim_matlab3d": 0.9, "ssim_skimage": 0.9})
    scores = pairs.scores_of("x.onnx", "set", measured, 0.01)
    assert scores.passed is passed
    told = pairs.check_of(scores)
    assert told.passed is passed
    assert ("too few pairs to tell" in told.detail) is (passed is None)


def test_one_value_has_no_interval() -> None:
    one = pairs.interval([0.25])
    assert one.mean == 0.25
    assert not one.known
