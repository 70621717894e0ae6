"""Evaluation: PSNR, the fixed blur set, and the scores made of both."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from msan.data.readers import DatasetError
from msan.degradation.blurset import BlurredPair, fixed_blur_set
from msan.evaluation.evaluate import (
    Evaluation,
    Metric,
    PictureScore,
    Skipped,
    SsimName,
    deblur_with_network,
    evaluate,
    metrics_of,
)
from msan.evaluation.methods import Method, MethodKind
from msan.evaluation.metrics import psnr_db
from msan.evaluation.sets import EvaluationLayout, EvaluationSet, MeasuredPair, OnBad
from msan.evaluation.ssim import ssim_matlab3d
from msan.network import MsanNetwork, start_as_identity
from msan.spec import ModelSpec
from msan_runtime.contract import PictureArray
from msan_runtime.errors import BackendError, ContractError, PictureError

TINY = ModelSpec(stages=2, base_channels=4, resblocks=1)


def noise(height: int, width: int, seed: int = 0) -> PictureArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def grey(level: int) -> PictureArray:
    return np.full((8, 8, 3), level, np.uint8)


def smooth(height: int, width: int, seed: int) -> PictureArray:
    coarse = Image.fromarray(noise(height // 8, width // 8, seed))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{name}.png" for name in "dacbe"]
    for seed, file in enumerate(files):
        Image.fromarray(noise(64 + seed, 70, seed)).save(file)
    return files


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 30), st.integers(1, 255), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_psnr_is_scikit_images(seed: int, strength: int, size: tuple[int, int]) -> None:
    reference = noise(*size, seed)
    change = np.random.default_rng(seed + 1).integers(-strength, strength + 1, reference.shape)
    picture = np.clip(reference + change, 0, 255).astype(np.uint8)
    picture[0, 0, 0] = reference[0, 0, 0] ^ 1
    expected = peak_signal_noise_ratio(reference, picture, data_range=255)
    assert psnr_db(picture, reference) == pytest.approx(expected, rel=1e-12)


def test_psnr_does_not_wrap_around() -> None:
    assert psnr_db(grey(0), grey(255)) == 0
    assert psnr_db(grey(255), grey(0)) == 0


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert psnr_db(noise(5, 7), noise(5, 7)) == math.inf


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        (grey(1).astype(np.float32), r"float32 \(8, 8, 3\)"),
        (grey(1).astype(np.int16), "int16"),
        (grey(1)[:4], r"\(4, 8, 3\)"),
        (grey(1)[None], r"\(1, 8, 8, 3\)"),
        (grey(1)[:, :, 0], r"\(8, 8\)"),
    ],
)
def test_psnr_refuses_other_dtypes_and_shapes(picture: Any, found: str) -> None:
    with pytest.raises(ContractError, match=found):
        psnr_db(picture, grey(1))
    with pytest.raises(ContractError, match=found):
        psnr_db(grey(1), picture)


def assert_same_pairs(ours: list[BlurredPair], theirs: list[BlurredPair]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.name, one.length_px) == (other.name, other.length_px)
        np.testing.assert_array_equal(one.blurred, other.blurred)
        np.testing.assert_array_equal(one.sharp, other.sharp)


def test_the_blur_set_is_the_same_each_time_and_in_any_order_of_the_folder(folder: list[Path]) -> None:
    first = list(fixed_blur_set(folder))
    assert [p.name for p in first] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    torch.manual_seed(5)
    assert_same_pairs(list(fixed_blur_set(folder)), first)
    assert_same_pairs(list(fixed_blur_set(folder[::-1])), first)


def test_the_order_does_not_matter_for_equal_names_in_two_folders(tmp_path: Path) -> None:
    files = [tmp_path / "one" / "a.png", tmp_path / "two" / "a.png"]
    for seed, file in enumerate(files):
        file.parent.mkdir()
        Image.fromarray(noise(64, 64, seed)).save(file)
    assert_same_pairs(list(fixed_blur_set(files)), list(fixed_blur_set(files[::-1])))


def test_paths_grow_evenly_from_2_to_18_px_in_shuffled_order(folder: list[Path]) -> None:
    lengths = [p.length_px for p in fixed_blur_set(folder)]
    assert sorted(lengths) == pytest.approx([2, 6, 10, 14, 18])
    assert lengths != sorted(lengths)


def test_longer_paths_blur_more(tmp_path: Path) -> None:
    # The same texture in each file: only the path differs.
    files = [tmp_path / f"{name}.png" for name in "abcdef"]
    smooth = Image.fromarray(noise(12, 12)).resize((120, 120), Image.Resampling.BICUBIC)
    for file in files:
        smooth.save(file)
    by_length = sorted(fixed_blur_set(files), key=lambda p: p.length_px)
    assert psnr_db(by_length[0].blurred, by_length[0].sharp) > psnr_db(by_length[-1].blurred, by_length[-1].sharp) + 6


def test_the_sharp_picture_is_the_file_without_its_border(folder: list[Path]) -> None:
    for seed, blurred_pair in zip((1, 3, 2, 0, 4), fixed_blur_set(folder), strict=True):
        np.testing.assert_array_equal(blurred_pair.sharp, noise(64 + seed, 70, seed)[20:-20, 20:-20])
        assert blurred_pair.blurred.shape == blurred_pair.sharp.shape
        assert blurred_pair.blurred.dtype == np.uint8
        assert blurred_pair.blurred.flags.c_contiguous


def test_pictures_too_small_or_damaged_for_the_blur_set_are_named(tmp_path: Path) -> None:
    small, broken = tmp_path / "small.png", tmp_path / "broken.png"
    Image.fromarray(noise(63, 90)).save(small)
    broken.write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"small\.png is 63×90 px"):
        list(fixed_blur_set([small]))
    with pytest.raises(PictureError, match=r"broken\.png"):
        list(fixed_blur_set([broken]))


@dataclass(frozen=True, kw_only=True)
class GreySet(EvaluationSet):
    """Flat pictures held in memory; of a name in ``bad`` the pair cannot be read."""

    pairs_held: tuple[MeasuredPair, ...]
    bad: frozenset[str] = frozenset()
    laid_out: EvaluationLayout = "pairs"

    @property
    def layout(self) -> EvaluationLayout:
        return self.laid_out

    @property
    def split(self) -> None:
        return None

    @property
    def all_files(self) -> tuple[tuple[str, Path], ...]:
        return tuple((pair.name, pair.file) for pair in self.pairs_held)

    def pairs(self, *, on_bad: OnBad | None = None) -> Iterator[MeasuredPair]:
        for held in self.pairs_held:
            if held.name not in self.bad:
                yield held
            elif on_bad is None:
                raise DatasetError(f"{held.name} is bad")
            else:
                on_bad(held.name, "is bad")


def pair(name: str, *, blurred: int, sharp: int = 100) -> MeasuredPair:
    return MeasuredPair(name=name, file=Path(f"{name}.png"), blurred=grey(blurred), sharp=grey(sharp))


def grey_set(*pairs: MeasuredPair, **fields: Any) -> GreySet:
    return GreySet(name="grey", root=Path(), pairs_held=pairs, **fields)


def method(deblur: Callable[[PictureArray], PictureArray], kind: MethodKind = "checkpoint") -> Method:
    return Method(label="m", source="m", kind=kind, deblur=lambda pair: deblur(pair.blurred))


def test_pictures_that_got_worse_are_counted() -> None:
    chosen = grey_set(pair("better", blurred=110), pair("same", blurred=90), pair("worse", blurred=104))
    after = {110: 102, 90: 90, 104: 120}
    seen: list[tuple[PictureScore, MeasuredPair, int]] = []
    result = evaluate(
        chosen,
        method(lambda picture: grey(after[int(picture[0, 0, 0])])),
        ssim=(),
        on_picture=lambda score, pair, deblurred: seen.append((score, pair, int(deblurred[0, 0, 0]))),
    )
    assert result.worse == 1
    assert [score.name for score in result.scores] == ["better", "same", "worse"]
    assert [one[0] for one in seen] == list(result.scores)
    assert [one[1] for one in seen] == list(chosen.pairs_held)
    assert [one[2] for one in seen] == [102, 90, 120]
    gains = [20 * math.log10(10 / 2), 0.0, 20 * math.log10(4 / 20)]
    assert [score.gain_db for score in result.scores] == pytest.approx(gains)
    assert result.gain_db == pytest.approx(sum(gains) / 3)
    assert result.blurred("psnr_db") == pytest.approx(np.mean([20 * math.log10(255 / d) for d in (10, 10, 4)]))
    assert result.deblurred("psnr_db") == pytest.approx(np.mean([20 * math.log10(255 / d) for d in (2, 10, 20)]))


def test_equal_pictures_are_infinitely_good_and_gain_nothing_over_themselves() -> None:
    result = evaluate(grey_set(pair("a", blurred=100), pair("b", blurred=90)), method(lambda _: grey(100)), ssim=())
    assert [score.gain_db for score in result.scores] == [0, math.inf]
    assert (result.blurred("psnr_db"), result.deblurred("psnr_db"), result.gain_db) == (math.inf, math.inf, 0)
    assert result.worse == 0


def test_each_metric_is_measured_as_its_own_module_does() -> None:
    sharp, blurred, deblurred = (smooth(48, 56, seed) for seed in (1, 2, 3))
    one = MeasuredPair(name="a", file=Path("a.png"), blurred=blurred, sharp=sharp)
    result = evaluate(grey_set(one), method(lambda _: deblurred))
    (scores,) = result.scores
    assert scores.size == (48, 56)
    for picture, found in ((blurred, scores.blurred), (deblurred, scores.deblurred)):
        assert found == {
            "psnr_db": pytest.approx(peak_signal_noise_ratio(sharp, picture, data_range=255)),
            "ssim_skimage": pytest.approx(structural_similarity(sharp, picture, channel_axis=2, data_range=255)),
            "ssim_matlab3d": ssim_matlab3d(picture, sharp),
        }


@pytest.mark.parametrize(
    ("layout", "ssim", "metrics"),
    [
        ("gopro", ("matlab3d", "skimage"), ("psnr_db", "ssim_matlab3d", "ssim_skimage")),
        ("blur-set", ("skimage",), ("psnr_db", "ssim_skimage")),
        ("hide", ("matlab3d",), ("psnr_db", "ssim_matlab3d")),
        ("pairs", (), ("psnr_db",)),
        ("realblur-j", ("skimage",), ("psnr_db", "ssim_skimage", "aligned_psnr_db", "aligned_ssim")),
        ("realblur-r", (), ("psnr_db", "aligned_psnr_db")),
    ],
)
def test_what_is_measured_follows_from_the_data_set_and_the_ssim_asked_for(
    layout: EvaluationLayout, ssim: tuple[SsimName, ...], metrics: tuple[Metric, ...]
) -> None:
    assert metrics_of(grey_set(pair("a", blurred=90), laid_out=layout), ssim) == metrics


def test_realblur_is_measured_after_alignment() -> None:
    """A picture shifted by 3 px: unaligned it is poor, aligned it is good."""
    scene = smooth(120, 140, 5)
    sharp, shifted = np.ascontiguousarray(scene[8:-8, 8:-8]), np.ascontiguousarray(scene[11:-5, 11:-5])
    one = MeasuredPair(name="a", file=Path("a.png"), blurred=shifted, sharp=sharp)
    result = evaluate(grey_set(one, laid_out="realblur-j"), method(lambda _: sharp), ssim=("skimage",))
    (scores,) = result.scores
    assert scores.blurred["aligned_psnr_db"] > scores.blurred["psnr_db"] + 10
    assert scores.blurred["aligned_ssim"] > 0.97 > scores.blurred["ssim_skimage"]
    gain = scores.deblurred["aligned_psnr_db"] - scores.blurred["aligned_psnr_db"]
    assert result.quoted_gain_db == scores.quoted_gain_db == pytest.approx(gain)
    assert result.gain_db == math.inf


def test_the_first_picture_is_run_once_to_warm_up_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the network moves: 9 s its first run, then 20 and 30 ms."""
    durations, runs, now = iter((9.0, 0.02, 0.03)), list[int](), [0.0]

    def deblur(picture: PictureArray) -> PictureArray:
        runs.append(int(picture[0, 0, 0]))
        now[0] += next(durations)
        return picture

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    result = evaluate(grey_set(pair("a", blurred=90), pair("b", blurred=91)), method(deblur), ssim=())
    assert runs == [90, 90, 91]
    assert result.times_ms == pytest.approx((20, 30))


def test_results_made_before_are_not_timed() -> None:
    result = evaluate(grey_set(pair("a", blurred=90)), method(lambda picture: picture, "results"), ssim=())
    assert result.times_ms == ()


def test_a_bad_picture_stops_or_is_skipped_and_counted() -> None:
    chosen = grey_set(pair("a", blurred=90), pair("b", blurred=90), bad=frozenset("a"))
    same = method(lambda picture: picture)
    with pytest.raises(DatasetError, match="a is bad"):
        evaluate(chosen, same, ssim=())
    told: list[tuple[str, str]] = []
    result = evaluate(chosen, same, ssim=(), skip_bad=True, on_skipped=lambda *words: told.append(words))
    assert [score.name for score in result.scores] == ["b"]
    assert result.skipped == (Skipped(name="a", reason="is bad"),)
    assert told == [("a", "is bad")]


def test_a_picture_that_cannot_be_measured_is_named() -> None:
    """Flat pictures cannot be aligned."""
    chosen = grey_set(pair("flat", blurred=90), laid_out="realblur-j")
    same = method(lambda picture: picture)
    with pytest.raises(DatasetError, match=r"grey, flat \(flat\.png\): "):
        evaluate(chosen, same, ssim=())
    with pytest.raises(DatasetError, match="no picture of grey could be measured"):
        evaluate(chosen, same, ssim=(), skip_bad=True)


def test_a_network_that_fails_is_never_skipped() -> None:
    def fail(_: PictureArray) -> PictureArray:
        raise BackendError("out of memory")

    with pytest.raises(BackendError, match="out of memory"):
        evaluate(grey_set(pair("a", blurred=90)), method(fail), ssim=(), skip_bad=True)


def test_a_mean_of_scores_does_not_depend_on_their_order() -> None:
    values = [random.Random(0).uniform(20, 40) for _ in range(4)]
    scores = [PictureScore(name="", size=(8, 8), blurred={"psnr_db": v}, deblurred={"psnr_db": v + 1}) for v in values]
    chosen = grey_set(pair("a", blurred=90))
    orders = itertools.permutations(scores)
    assert len({Evaluation(measured_set=chosen, scores=order).blurred("psnr_db") for order in orders}) == 1


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (9, 16), (16, 23)])
def test_a_picture_of_any_size_is_deblurred_as_if_its_edges_went_on(
    size: tuple[int, int], published_state: Callable[..., dict[str, Tensor]], reference_outputs: Callable[..., Any]
) -> None:
    state = published_state(**TINY.to_dict())
    network = MsanNetwork(TINY)
    network.load_state_dict(state)
    picture = noise(*size)
    before = picture.copy()
    deblurred = deblur_with_network(network.eval(), picture)
    assert deblurred.shape == picture.shape
    assert deblurred.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)
    blurred = torch.from_numpy(before).permute(2, 0, 1)[None].double() / 255
    expected = (reference_outputs(state, blurred)[-1] + blurred).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    # FP32 may round a value near one half the other way.
    assert float(np.abs(deblurred - expected).max()) <= 0.5 + 1e-2


@pytest.mark.parametrize("size", [(7, 5), (24, 16)])
def test_the_identity_gives_every_level_back(size: tuple[int, int]) -> None:
    network = MsanNetwork(TINY)
    start_as_identity(network)
    levels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)
    np.testing.assert_array_equal(deblur_with_network(network, levels), levels)


def test_a_picture_that_is_not_contiguous_is_deblurred_alike() -> None:
    torch.manual_seed(0)
    network, picture = MsanNetwork(TINY), noise(14, 12)
    flipped = picture[::-1, ::2]
    np.testing.assert_array_equal(
        deblur_with_network(network, flipped), deblur_with_network(network, np.ascontiguousarray(flipped))
    )
