"""Evaluation: PSNR, the fixed blur set, and the scores made of both."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from msan.blurset import BlurredPair, fixed_blur_set
from msan.datasets import DatasetError
from msan.evaluate import Evaluation, PictureScore, deblur_with_network, evaluate, save_scores
from msan.metrics import psnr_db
from msan.network import MsanNetwork, start_as_identity
from msan.spec import ModelSpec
from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError, PictureError

TINY = ModelSpec(stages=2, base_channels=4, resblocks=1)


def noise(height: int, width: int, seed: int = 0) -> PictureArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def grey(level: int) -> PictureArray:
    return np.full((8, 8, 3), level, np.uint8)


def pair(name: str, *, blurred: int, sharp: int = 100) -> BlurredPair:
    return BlurredPair(name=name, blurred=grey(blurred), sharp=grey(sharp), length_px=5.0)


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


def test_pictures_that_got_worse_are_counted() -> None:
    pairs = [pair("better", blurred=110), pair("same", blurred=90), pair("worse", blurred=104)]
    after = {110: 102, 90: 90, 104: 120}
    seen: list[PictureScore] = []
    result = evaluate(pairs, lambda picture: grey(after[int(picture[0, 0, 0])]), on_score=seen.append)
    assert result.worse == 1
    assert [score.name for score in result.scores] == ["better", "same", "worse"]
    assert tuple(seen) == result.scores
    gains = [20 * math.log10(10 / 2), 0.0, 20 * math.log10(4 / 20)]
    assert [score.gain_db for score in result.scores] == pytest.approx(gains)
    assert result.gain_db == pytest.approx(sum(gains) / 3)
    assert result.blurred_db == pytest.approx(np.mean([20 * math.log10(255 / d) for d in (10, 10, 4)]))
    assert result.deblurred_db == pytest.approx(np.mean([20 * math.log10(255 / d) for d in (2, 10, 20)]))


def test_scores_are_saved_as_json(tmp_path: Path) -> None:
    result = evaluate([pair("a", blurred=110), pair("b", blurred=104)], lambda picture: picture + np.uint8(1))
    save_scores(result, tmp_path / "scores.json", "msan-s")
    body = json.loads((tmp_path / "scores.json").read_text())
    assert (body["model"], body["pictures"], body["worse"], body["blur_set_version"]) == ("msan-s", 2, 2, 1)
    assert body["gain_db"] == pytest.approx(result.gain_db)
    assert [s["name"] for s in body["scores"]] == ["a", "b"]
    assert body["scores"][0]["gain_db"] == pytest.approx(result.scores[0].gain_db)


def test_a_mean_of_scores_does_not_depend_on_their_order() -> None:
    values = [random.Random(0).uniform(20, 40) for _ in range(4)]
    scores = [PictureScore(name="", length_px=2, blurred_db=v, deblurred_db=v + 1) for v in values]
    means = {Evaluation(scores=order).blurred_db for order in itertools.permutations(scores)}
    assert len(means) == 1


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
