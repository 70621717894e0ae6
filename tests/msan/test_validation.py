"""Validation while training: PSNR against scikit-image's, on centre crops that are always the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from msan.data.readers import find_pair_sets, picture_files
from msan.training.recipe import TrainConfig
from msan.training.validation import ValidationSet, open_validation
from msan_runtime.errors import MsanError

CPU = torch.device("cpu")


class Brighter(nn.Module):
    """Adds a tenth, so that bright pixels leave the range."""

    def forward(self, blurred: Tensor) -> Tensor:
        return blurred + 0.1


def noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, 16, 24), generator=generator, dtype=torch.uint8)


def psnr_db(one: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], other: Tensor) -> float:
    return float(peak_signal_noise_ratio(other.numpy(), one))


def test_scores_are_the_mean_psnr_of_rounded_and_clipped_pictures() -> None:
    crops = [(noise(0), noise(1)), (noise(2), noise(3))]
    result = ValidationSet(crops=crops).score(Brighter(), CPU)
    brighter = [np.clip(np.rint(b.numpy() + 25.5), 0, 255).astype(np.uint8) for b, _ in crops]
    expected = [psnr_db(d, sharp) for d, (_, sharp) in zip(brighter, crops, strict=True)]
    assert result.deblurred_db == pytest.approx(np.mean(expected), abs=0.02)
    assert result.blurred_db == pytest.approx(np.mean([psnr_db(b.numpy(), s) for b, s in crops]), abs=1e-6)
    assert result.gain_db == pytest.approx(result.deblurred_db - result.blurred_db)
    blurred, deblurred, sharp = result.example.split(24, 2)
    assert torch.equal(blurred, crops[0][0])
    assert int((deblurred.int() - torch.from_numpy(brighter[0]).int()).abs().max()) <= 1
    assert torch.equal(sharp, crops[0][1])


def test_equal_pictures_count_as_100_db() -> None:
    same = ValidationSet(crops=[(noise(0), noise(0)), (noise(1), noise(2))])
    result = same.score(nn.Identity(), CPU)
    assert result.blurred_db == result.deblurred_db == pytest.approx((100 + psnr_db(noise(1).numpy(), noise(2))) / 2)


def test_a_network_in_training_is_left_in_training() -> None:
    network = nn.Dropout(0.9)
    scores = [ValidationSet(crops=[(noise(0), noise(1))]).score(network, CPU).deblurred_db for _ in range(2)]
    assert network.training
    assert scores == [pytest.approx(psnr_db(noise(0).numpy(), noise(1)))] * 2


def test_pairs_are_cut_at_the_same_centre(miniature: TrainConfig, pair_folder: Path) -> None:
    (pair_set,) = find_pair_sets(pair_folder)
    opened = open_validation([], pair_set.pairs, miniature, pytest.fail)
    assert opened is not None
    assert len(opened.crops) == 2
    for blurred, sharp in opened.crops:
        assert blurred.shape == sharp.shape == (3, 32, 32)
        # The pairs' blur is the mean of five shifts to the right.
        shifted = torch.stack([sharp[:, :, 4 - s : 32 - s].float() for s in range(5)]).mean(0)
        assert float((blurred[:, :, 4:] - shifted).abs().max()) < 1


def test_sharp_pictures_are_blurred_with_the_same_seeds_each_time(miniature: TrainConfig, sharp_folder: Path) -> None:
    first, again = (open_validation(picture_files(sharp_folder), [], miniature, pytest.fail) for _ in range(2))
    other = open_validation(picture_files(sharp_folder), [], dataclasses.replace(miniature, seed=5), pytest.fail)
    assert first is not None
    assert again is not None
    assert other is not None
    for one, two, three in zip(first.crops, again.crops, other.crops, strict=True):
        assert not torch.equal(one[0], one[1])
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
        # Runs of other seeds are compared on the same pictures.
        assert torch.equal(one[0], three[0])


def test_small_pictures_are_left_out_and_bad_ones_stop_or_are_named(
    miniature: TrainConfig, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_pictures(tmp_path / "a", 2)
    make_pictures(tmp_path / "a" / "small", 1, height=30, width=90)
    (folder / "broken.png").write_bytes(b"no picture")
    heard: list[str] = []
    with pytest.raises(MsanError, match=r"broken\.png"):
        open_validation(picture_files(folder), [], miniature, heard.append)
    opened = open_validation(picture_files(folder), [], miniature, heard.append, skip_bad=True)
    assert opened is not None
    assert len(opened.crops) == 2
    assert "broken.png" in heard[0]
    assert heard[1:] == ["1 validation pictures left out: they are too small"]
    assert open_validation([folder / "broken.png"], [], miniature, heard.append, skip_bad=True) is None


def test_a_picture_smaller_than_the_crop_is_taken_as_large_as_it_is(
    miniature: TrainConfig, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    files = picture_files(make_pictures(tmp_path, 1, height=75, width=130))
    opened = open_validation(files, [], dataclasses.replace(miniature, validation_px=256), pytest.fail)
    assert opened is not None
    # 75 less two margins of 4, down to a multiple of 8.
    assert opened.crops[0][0].shape == (3, 64, 64)


def test_of_many_pictures_some_are_taken_spread_evenly(
    miniature: TrainConfig, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    files = picture_files(make_pictures(tmp_path, 70, height=40, width=40))
    opened = open_validation(files, [], miniature, pytest.fail)
    assert opened is not None
    assert len(opened.crops) == 24
