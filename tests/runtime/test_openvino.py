"""Both CPU backends under one contract, and which of them ``auto`` takes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan_runtime import select
from msan_runtime.backends import contest
from msan_runtime.backends import openvino as openvino_module
from msan_runtime.backends.base import Backend, TileLimits
from msan_runtime.backends.contest import Verdict, timed_verdict
from msan_runtime.backends.openvino import open_openvino
from msan_runtime.backends.ort import open_ort
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import Io, PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, ContractError, OutOfMemoryError
from msan_runtime.select import select_backend

NoiseMaker = Callable[..., PictureArray]
Opener = Callable[..., Backend]

LIMITS = TileLimits(area_px=64 * 64)


def open_with_ort(graph: bytes, limits: TileLimits = LIMITS, io: Io = "uint8") -> Backend:
    return open_ort(graph, "ort-cpu", limits=limits, io=io)


def open_with_openvino(graph: bytes, limits: TileLimits = LIMITS, io: Io = "uint8") -> Backend:
    return open_openvino(graph, limits=limits, io=io)


both = pytest.mark.parametrize("opener", [open_with_ort, open_with_openvino])


@both
@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (1, 64, 64, 3), (1, 16, 40, 3), (3, 24, 16, 3)])
def test_tiles_of_any_shape_go_through_the_graph(
    opener: Opener, shape: tuple[int, ...], inverting_graph: bytes, noise: NoiseMaker
) -> None:
    tiles = noise(*shape)
    with opener(inverting_graph) as backend:
        result = backend.infer(tiles)
    assert result.dtype == np.uint8
    assert np.array_equal(result, 255 - tiles)


@both
def test_a_result_is_a_new_array_and_the_tiles_are_left_alone(
    opener: Opener, inverting_graph: bytes, noise: NoiseMaker
) -> None:
    tiles = noise(1, 16, 16, 3)
    before = tiles.copy()
    with opener(inverting_graph) as backend:
        first = backend.infer(tiles)
        backend.infer(255 - tiles)
    assert np.array_equal(tiles, before)
    assert np.array_equal(first, 255 - before)


@both
def test_tiles_cut_out_of_a_picture_go_through_as_they_are(
    opener: Opener, inverting_graph: bytes, noise: NoiseMaker
) -> None:
    picture = noise(40, 48, 3)
    with opener(inverting_graph) as backend:
        assert np.array_equal(backend.infer(picture[8:32, 16:48][None]), 255 - picture[8:32, 16:48][None])


@both
def test_many_batches_come_out_in_order(opener: Opener, inverting_graph: bytes, noise: NoiseMaker) -> None:
    tiles = [noise(1, 8, 8 * n, 3) for n in (1, 2, 1, 3)]
    with opener(inverting_graph) as backend:
        results = list(backend.infer_many(tiles))
    assert all(np.array_equal(result, 255 - tile) for result, tile in zip(results, tiles, strict=True))


@both
def test_tiles_that_the_limits_do_not_allow_are_refused(
    opener: Opener, inverting_graph: bytes, noise: NoiseMaker
) -> None:
    with opener(inverting_graph) as backend:
        with pytest.raises(ContractError, match="largest area"):
            backend.infer(noise(1, 64, 72, 3))
        with pytest.raises(ContractError, match="multiples of 8"):
            backend.infer(noise(1, 12, 16, 3))


@both
def test_a_closed_backend_says_so(opener: Opener, inverting_graph: bytes, noise: NoiseMaker) -> None:
    backend = opener(inverting_graph)
    backend.close()
    with pytest.raises(BackendError, match="was closed: load the bundle again"):
        backend.infer(noise(1, 8, 8, 3))


@both
@pytest.mark.parametrize("graph", [b"", b"not a graph"])
def test_what_is_no_graph_is_refused_in_one_line(opener: Opener, graph: bytes) -> None:
    with pytest.raises(BackendError, match="cannot load the graph") as caught:
        opener(graph)
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


@both
def test_results_are_those_of_the_pytorch_network(
    opener: Opener, tiny: Checkpoint, tiny_bundle: Path, noise: NoiseMaker
) -> None:
    import torch

    bundle = open_bundle(tiny_bundle)
    entry = bundle.graph(prefer=("fp32",), io="float32")
    assert entry is not None
    tiles = noise(2, 40, 64, 3).astype(np.float32) / np.float32(255)
    with opener(bundle.read(entry.path), io="float32") as backend:
        result = backend.infer(tiles)
    with torch.inference_mode():
        expected = network_from_checkpoint(tiny)(torch.from_numpy(tiles).permute(0, 3, 1, 2)).clamp(0, 1)
    # BF16, which OpenVINO takes by itself where the processor has it, is 1e-3 and more away.
    assert np.abs(result - expected.permute(0, 2, 3, 1).numpy()).max() <= 2e-5


def test_both_deblur_a_picture_alike(tiny_bundle: Path, noise: NoiseMaker) -> None:
    picture = noise(50, 75, 3)
    results: list[Any] = []
    for name in ("ort-cpu", "openvino"):
        with Deblurrer.load(tiny_bundle, name) as deblurrer:
            assert deblurrer.backend.name == name
            results.append(deblurrer.deblur(picture).astype(int))
            results.append(deblurrer.deblur(picture.astype(np.uint16) * 257).astype(int) / 257)
    assert np.abs(results[0] - results[2]).max() <= 1
    assert np.abs(results[1] - results[3]).max() <= 0.1


def test_the_device_is_named_with_its_release(inverting_graph: bytes) -> None:
    import openvino

    with open_with_openvino(inverting_graph) as backend:
        assert backend.name == "openvino"
        assert backend.device == f"CPU, OpenVINO {openvino.__version__.partition('-')[0]}"


class FailingRequest:
    """An OpenVINO request that fails as ``error`` says."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def infer(self, *_inputs: object, **_options: object) -> object:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("std::bad_alloc"), OutOfMemoryError),
        (RuntimeError("Exception from src/a.cpp:1:\nstd::bad_alloc"), OutOfMemoryError),
        (RuntimeError("Exception from src/a.cpp:1:\nCheck 'x' failed"), BackendError),
    ],
)
def test_a_failure_is_told_apart_from_a_lack_of_memory(
    error: Exception, kind: type[BackendError], noise: NoiseMaker
) -> None:
    from types import SimpleNamespace

    from msan_runtime.backends.openvino import OpenVinoBackend

    model: Any = SimpleNamespace(create_infer_request=lambda: FailingRequest(error))
    backend = OpenVinoBackend(model, limits=LIMITS, io="uint8", device="CPU")
    with pytest.raises(kind, match=r"\(1, 8, 8, 3\): (std::bad_alloc|Check 'x' failed)$") as caught:
        backend.infer(noise(1, 8, 8, 3))
    assert type(caught.value) is kind


def test_without_openvino_its_name_is_an_error_and_auto_goes_on(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    bundle = open_bundle(bundle_folder)
    with pytest.raises(BackendError, match=r"openvino is not installed \(pip install 'msan\[openvino\]'\)"):
        select_backend(bundle, "openvino")
    assert select_backend(bundle).backend.name == "ort-cpu"


class ClockedBackend(Backend):
    """Its runs take as many seconds of a clock as the tile has pixels, times ``pace``."""

    device = "clock"

    def __init__(self, name: str, pace: float, clock: list[float], limits: TileLimits) -> None:
        self.name = name
        self.limits = limits
        self.shapes: list[tuple[int, ...]] = []
        self._pace = pace
        self._clock = clock

    def infer(self, tiles: PictureArray) -> PictureArray:
        self.shapes.append(tiles.shape)
        self._clock[0] += self._pace * tiles.shape[1] * tiles.shape[2]
        return tiles


@pytest.mark.parametrize(
    ("seconds_per_px", "area_px", "side"),
    [
        (1e-9, 10**6, 384),
        (5e-6, 10**6, 256),
        (2e-5, 10**6, 128),
        (1e-3, 10**6, 64),
        (1e-9, 128 * 128, 128),
        (1e-9, 32 * 32, 8),
    ],
)
def test_the_timed_tile_is_as_large_as_time_and_limits_allow(
    seconds_per_px: float, area_px: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(contest.time, "perf_counter", lambda: clock[0])
    limits = TileLimits(area_px=area_px)
    challenger = ClockedBackend("a", seconds_per_px, clock, limits)
    champion = ClockedBackend("b", 0.8 * seconds_per_px, clock, limits)
    verdict = timed_verdict(challenger, champion)
    assert (verdict.side_px, round(verdict.ratio, 6), verdict.slower) == (side, 1.25, True)
    assert challenger.shapes == champion.shapes
    assert str(verdict) == f"takes 1.25 times as long as b on this machine (timed on a {side}×{side} tile)"


def verdict_of(
    challenger: Backend, champion: Backend, *, ratio: float = 0.5, levels_apart: int = 1, psnr_db: float = 60.0
) -> Verdict:
    return Verdict(
        challenger=challenger.name,
        champion=champion.name,
        ratio=ratio,
        side_px=64,
        levels_apart=levels_apart,
        psnr_db=psnr_db,
    )


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Ratios that the next contests will have, in a cache folder of the test's own, on a processor without BF16."""
    ratios: list[float] = []
    monkeypatch.setattr(select, "timed_verdict", lambda one, other: verdict_of(one, other, ratio=ratios.pop()))
    monkeypatch.setattr(openvino_module, "_computes_bf16", lambda: False)
    monkeypatch.setattr(contest, "cache_folder", lambda: tmp_path / "cache")
    return ratios


@pytest.mark.parametrize(("ratio", "taken"), [(0.9, "openvino"), (1.0, "openvino"), (1.01, "ort-cpu")])
def test_auto_takes_openvino_only_where_it_is_not_slower_and_remembers(
    ratio: float, taken: str, bundle_folder: Path, verdicts: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = open_bundle(bundle_folder)
    verdicts.append(ratio)
    caplog.set_level(logging.WARNING)
    for _ in range(2):  # the second time nothing is timed: there is no further ratio
        selection = select_backend(bundle)
        assert selection.backend.name == taken
        words = [reason for reason in selection.passed_over if reason.startswith("openvino:")]
        expected = "openvino: takes 1.01 times as long as ort-cpu on this machine (timed on a 64×64 tile)"
        assert words == ([] if taken == "openvino" else [expected])
    assert caplog.text.count(f"running on {taken}") == 2


@pytest.mark.parametrize(
    ("bf16", "taken", "reason"),
    [
        ({}, "openvino-bf16", ""),
        ({"ratio": 1.2}, "openvino", "takes 1.20 times as long as ort-cpu on this machine (timed on a 64×64 tile)"),
        (
            {"levels_apart": 4},
            "openvino",
            "its result is not that of ort-cpu (4 levels, 60.0 dB on a 64×64 tile)",
        ),
        ({"psnr_db": 49.9}, "openvino", "its result is not that of ort-cpu (1 levels, 49.9 dB on a 64×64 tile)"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_faster_and_gives_the_fp32_picture(
    bf16: dict[str, Any],
    taken: str,
    reason: str,
    bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def verdict(challenger: Backend, champion: Backend) -> Verdict:
        return verdict_of(challenger, champion, **(bf16 if challenger.name == "openvino-bf16" else {}))

    monkeypatch.setattr(openvino_module, "_computes_bf16", lambda: True)
    monkeypatch.setattr(select, "timed_verdict", verdict)
    monkeypatch.setattr(contest, "cache_folder", lambda: tmp_path / "cache")
    for _ in range(2):
        selection = select_backend(open_bundle(bundle_folder))
        assert selection.backend.name == taken
        told = [words for words in selection.passed_over if words.startswith("openvino")]
        assert told == ([f"openvino-bf16: {reason}"] if reason else [])


def test_without_onnxruntime_bf16_is_held_against_fp32_of_its_own_library(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rivals: list[tuple[str, str]] = []

    def verdict(challenger: Backend, champion: Backend) -> Verdict:
        rivals.append((challenger.name, champion.name))
        return verdict_of(challenger, champion, ratio=1.5)

    monkeypatch.setattr(openvino_module, "_computes_bf16", lambda: True)
    monkeypatch.setattr(select.ort, "unavailable", lambda _name: "not installed")
    monkeypatch.setattr(select, "timed_verdict", verdict)
    monkeypatch.setattr(contest, "cache_folder", lambda: tmp_path / "cache")
    assert select_backend(open_bundle(bundle_folder)).backend.name == "openvino"
    assert rivals == [("openvino-bf16", "openvino")]


def test_a_contest_measures_how_far_the_results_are_apart(inverting_graph: bytes) -> None:
    class OffByFour(ClockedBackend):
        def infer(self, tiles: PictureArray) -> PictureArray:
            return np.bitwise_xor(tiles, 4, dtype=np.uint8)

    limits = TileLimits(area_px=64 * 64)
    verdict = timed_verdict(OffByFour("a", 0, [0.0], limits), ClockedBackend("b", 0, [0.0], limits))
    assert (verdict.levels_apart, round(verdict.psnr_db, 3)) == (4, round(20 * np.log10(255 / 4), 3))
    assert verdict.astray
    with open_with_ort(inverting_graph) as one, open_with_openvino(inverting_graph) as other:
        same = timed_verdict(one, other)
    assert (same.levels_apart, same.psnr_db, same.astray) == (0, np.inf, False)


def test_bf16_runs_where_the_processor_has_it_and_stays_within_the_bounds_of_verify(
    tiny_bundle: Path, noise: NoiseMaker
) -> None:
    reason = openvino_module.unavailable("openvino-bf16")
    if reason is not None:
        with pytest.raises(BackendError, match=f"openvino-bf16: {reason}"):
            select_backend(open_bundle(tiny_bundle), "openvino-bf16")
        return
    picture = noise(50, 75, 3)
    results: dict[str, Any] = {}
    for name in ("openvino", "openvino-bf16"):
        with Deblurrer.load(tiny_bundle, name) as deblurrer:
            assert deblurrer.backend.name == name
            assert deblurrer.backend.device.endswith(", BF16") == (name == "openvino-bf16")
            results[name] = deblurrer.deblur(picture).astype(int)
            results[f"{name}:float"] = deblurrer.deblur(picture.astype(np.float32) / np.float32(255))
    difference = results["openvino"] - results["openvino-bf16"]
    assert 0 < np.abs(difference).max() <= 3
    assert 20 * np.log10(255 / np.sqrt(np.mean(difference**2))) >= 50
    # Pictures of more than 8 bits are computed in FP32 on both.
    assert np.array_equal(results["openvino:float"], results["openvino-bf16:float"])


def test_a_name_means_that_backend_whatever_it_takes(bundle_folder: Path, verdicts: list[float]) -> None:
    assert select_backend(open_bundle(bundle_folder), "openvino").backend.name == "openvino"
    assert verdicts == []


@pytest.mark.parametrize("change", ["processor", "versions", "damaged"])
def test_a_verdict_holds_for_its_conditions_alone(
    change: str, bundle_folder: Path, verdicts: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = open_bundle(bundle_folder)
    verdicts.append(2.0)
    assert select_backend(bundle).backend.name == "ort-cpu"
    if change == "processor":
        monkeypatch.setattr(contest, "processor_name", lambda: "another")
    if change == "versions":
        monkeypatch.setattr(contest, "installed_versions", lambda names: dict.fromkeys(names, "99"))
    if change == "damaged":
        for path in (tmp_path / "cache").rglob("*.json"):
            path.write_text('{"verdict": {"ratio": "low"}}')
    verdicts.append(0.5)
    assert select_backend(bundle).backend.name == "openvino"


def test_a_cache_that_cannot_be_written_is_no_error(
    bundle_folder: Path, verdicts: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(contest, "cache_folder", lambda: tmp_path / "file")
    for _ in range(2):
        verdicts.append(0.5)
        assert select_backend(open_bundle(bundle_folder)).backend.name == "openvino"
    assert verdicts == []


def test_a_contest_that_fails_is_a_reason(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_backends: Backend) -> Verdict:
        raise BackendError("openvino failed on tiles")

    monkeypatch.setattr(select, "timed_verdict", fail)
    monkeypatch.setattr(openvino_module, "_computes_bf16", lambda: False)
    monkeypatch.setattr(contest, "cache_folder", lambda: tmp_path / "cache")
    selection = select_backend(open_bundle(bundle_folder))
    assert selection.backend.name == "ort-cpu"
    assert "openvino: openvino failed on tiles" in selection.passed_over
