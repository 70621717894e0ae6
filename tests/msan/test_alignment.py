"""Alignment of pictures that are known functions of the plane, so that every warp of them is exact."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from msan.evaluation.alignment import Aligned, AlignmentError, align, aligned_psnr_db, aligned_ssim
from msan.evaluation.metrics import psnr_db
from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError, MissingExtraError

HEIGHT, WIDTH = 112, 136
IDENTITY = np.eye(3)
SHIFT = np.array([[1, 0, 4.3], [0, 1, -2.6], [0, 0, 1]])
TURN = np.array([[0.9998, -0.02, 1.5], [0.02, 0.9998, -1.0], [0, 0, 1]])
TILT = np.array([[1.004, 0.002, -1.2], [-0.003, 0.997, 0.8], [2e-5, -3e-5, 1]])

FloatPicture = npt.NDArray[np.float32]


def scene(homography: npt.NDArray[np.float64] = IDENTITY, *, seed: int = 0, gain: float = 1.0) -> PictureArray:
    """A sum of waves, uint8, seen at ``homography`` · (x, y, 1)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    u, v, w = np.tensordot(homography, np.stack((x, y, np.ones_like(x))), 1)
    frequencies = rng.uniform(-0.45, 0.45, (3, 12, 2))
    phases = rng.uniform(0, 6.28, (3, 12))
    waves = np.cos(np.tensordot(frequencies, np.stack((u / w, v / w)), 1) + phases[..., None, None]).mean(1)
    return np.rint(gain * (110 + 150 * waves).clip(0, 220)).astype(np.uint8).transpose(1, 2, 0)


def inverse(homography: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.inv(homography), np.float64)


def corners_under(homography: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    corners = np.array([[0, 0, 1], [WIDTH - 1, 0, 1], [0, HEIGHT - 1, 1], [WIDTH - 1, HEIGHT - 1, 1]]).T
    projected = homography @ corners
    return projected[:2] / projected[2]


def aligned_of(picture: FloatPicture, reference: FloatPicture, mask: npt.NDArray[np.bool_]) -> Aligned:
    return Aligned(picture=picture, reference=reference, mask=mask, gain=1.0, homography=np.eye(3, dtype=np.float32))


def noise(seed: int, height: int = 24, width: int = 30) -> FloatPicture:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


@pytest.mark.parametrize("homography", [SHIFT, TURN, TILT])
def test_a_moved_picture_scores_high_after_alignment_and_low_before(homography: npt.NDArray[np.float64]) -> None:
    sharp, moved = scene(), scene(inverse(homography))
    before_db = psnr_db(moved, sharp)
    assert before_db < 31
    aligned = align(moved, sharp)
    assert aligned_psnr_db(aligned) > before_db + 8
    assert aligned_ssim(aligned) > 0.99
    # What is left is mostly the gain: the published procedure takes it before the warp.
    same_gain = dataclasses.replace(aligned, picture=aligned.picture / np.float32(aligned.gain))
    assert aligned_psnr_db(same_gain) > 42


@pytest.mark.parametrize("homography", [SHIFT, TURN, TILT])
def test_the_homography_leads_from_the_reference_into_the_picture(homography: npt.NDArray[np.float64]) -> None:
    found = align(scene(inverse(homography)), scene()).homography
    assert np.abs(corners_under(found) - corners_under(homography)).max() < 0.2


@pytest.mark.parametrize("gain", [0.6, 0.9, 1.1])
def test_a_factor_on_intensity_is_removed(gain: float) -> None:
    sharp, darker = scene(), scene(gain=gain)
    assert psnr_db(darker, sharp) < 35
    aligned = align(darker, sharp)
    assert aligned.gain == pytest.approx(1 / gain, rel=2e-3)
    assert aligned_psnr_db(aligned) > 50


def test_the_gain_is_that_of_least_squares() -> None:
    x, z = scene().astype(np.float64), scene(SHIFT, gain=0.8).astype(np.float64)
    expected = np.linalg.lstsq(z.reshape(-1, 1), x.ravel())[0][0]
    assert align(scene(SHIFT, gain=0.8), scene()).gain == pytest.approx(expected, rel=1e-5)


def test_equal_pictures_stay_as_they_are() -> None:
    aligned = align(scene(), scene())
    assert aligned.gain == pytest.approx(1)
    assert np.abs(corners_under(aligned.homography) - corners_under(IDENTITY)).max() < 0.01
    assert aligned.mask[1:-1, 1:-1].all()
    assert aligned_psnr_db(aligned) > 60
    assert aligned_ssim(aligned) > 0.9999


def test_what_moved_out_of_the_picture_is_masked() -> None:
    """4.3 px to the right and 2.6 px up are unknown at the right and at the top."""
    aligned = align(scene(inverse(SHIFT)), scene())
    unknown = ~aligned.mask
    assert unknown[:, -4:].all()
    assert unknown[:2].all()
    assert not unknown[4:, :-6].any()
    assert not aligned.picture[unknown].any()
    assert not aligned.reference[unknown].any()
    np.testing.assert_allclose(aligned.reference[aligned.mask], scene()[aligned.mask] / np.float32(255), rtol=1e-6)


def test_pictures_are_float32_in_the_references_shape() -> None:
    aligned = align(scene(TURN), scene())
    assert aligned.picture.shape == aligned.reference.shape == (HEIGHT, WIDTH, 3)
    assert aligned.picture.dtype == aligned.reference.dtype == np.float32
    assert aligned.mask.dtype == np.bool_


def test_psnr_is_over_the_pixels_inside_the_mask_alone() -> None:
    x, z = noise(1), noise(2)
    mask = np.zeros(x.shape[:2], np.bool_)
    mask[3:20, 7:] = True
    known = mask[..., None]
    inside = (x.astype(np.float64) - z)[3:20, 7:]
    expected = 10 * np.log10(1 / (inside**2).mean())
    assert aligned_psnr_db(aligned_of(z * known, x * known, mask)) == pytest.approx(expected, abs=1e-6)
    assert aligned_psnr_db(aligned_of(z, x, mask)) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_over_the_windows_that_centre_inside_the_mask() -> None:
    x, z = noise(1), noise(2)
    mask = np.ones(x.shape[:2], np.bool_)
    mask[:, :12] = False
    x, z = x * mask[..., None], z * mask[..., None]
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    values: list[float] = []
    for row in range(5, x.shape[0] - 5):
        for column in range(12, x.shape[1] - 5):
            for channel in range(3):
                area = (slice(row - 5, row + 6), slice(column - 5, column + 6), channel)
                a, b = x[area].astype(np.float64), z[area].astype(np.float64)
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert aligned_ssim(aligned_of(z, x, mask)) == pytest.approx(np.mean(values), abs=1e-6)


def test_equal_aligned_pictures_have_infinite_psnr() -> None:
    everywhere = np.ones((24, 30), np.bool_)
    assert aligned_psnr_db(aligned_of(noise(1), noise(1), everywhere)) == np.inf


def test_a_mask_without_a_pixel_inside_is_refused() -> None:
    border = np.ones((24, 30), np.bool_)
    border[5:-5, 5:-5] = False
    with pytest.raises(AlignmentError, match="do not overlap"):
        aligned_of(noise(1), noise(1), border)


def test_aligned_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(AlignmentError, match="of one size"):
        aligned_of(noise(1), noise(1), np.ones((24, 29), np.bool_))


@pytest.mark.parametrize(
    ("picture", "reference"),
    [
        (np.full((HEIGHT, WIDTH, 3), 128, np.uint8), scene()),
        (scene(), np.full((HEIGHT, WIDTH, 3), 128, np.uint8)),
        (scene(), np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        (255 - scene(), scene()),
    ],
)
def test_flat_pictures_and_other_scenes_are_refused(picture: PictureArray, reference: PictureArray) -> None:
    with pytest.raises(AlignmentError, match=r"ECC found no alignment \(.*\w\)\. Are the pictures flat") as caught:
        align(picture, reference)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_black_picture_is_refused() -> None:
    with pytest.raises(AlignmentError, match="a black picture"):
        align(np.zeros((HEIGHT, WIDTH, 3), np.uint8), scene())


def ecc_that_finds(*found: tuple[float, float]) -> Callable[..., tuple[float, FloatPicture]]:
    """A stand-in for OpenCV's: each call's correlation, and a shift to the right in px."""
    results = iter(found)

    def find(*_: object) -> tuple[float, FloatPicture]:
        correlation, shift_px = next(results)
        return correlation, np.array([[1, 0, shift_px], [0, 1, 0], [0, 0, 1]], np.float32)

    return find


def test_ecc_runs_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    ecc: Any = cv2.findTransformECC

    def spy(*arguments: Any) -> Any:
        calls.append((arguments[2].copy(), *arguments[3:]))
        return ecc(*arguments)

    monkeypatch.setattr(cv2, "findTransformECC", spy)
    align(scene(TURN), scene())
    start, motion, criteria, mask, gaussian_px = calls[-1]
    assert (motion, gaussian_px) == (cv2.MOTION_HOMOGRAPHY, 5)
    assert criteria == (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0)
    assert mask.all()
    np.testing.assert_array_equal(start, np.eye(3))


def test_an_alignment_that_made_it_worse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "findTransformECC", ecc_that_finds((0.9, 0.0), (0.7, 0.0)))
    with pytest.raises(AlignmentError, match=r"ECC diverged: the correlation fell from 0\.9000 to 0\.7000"):
        align(scene(), scene())


def test_an_alignment_without_overlap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "findTransformECC", ecc_that_finds((0.1, 0.0), (0.2, 2.0 * WIDTH)))
    with pytest.raises(AlignmentError, match="do not overlap"):
        align(scene(), scene())


def test_pictures_of_two_shapes_other_dtypes_and_small_ones_are_refused() -> None:
    with pytest.raises(ContractError, match="alignment needs two uint8 pictures of one shape"):
        align(scene(), scene()[1:])
    with pytest.raises(ContractError, match="alignment needs two uint8 pictures"):
        align(scene().astype(np.int16), scene())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ContractError, match="alignment needs pictures of 11 px a side, not 10×136 px"):
        align(scene()[:10], scene()[:10])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"opencv-python-headless is not installed.*msan\[evaluate\]"):
        align(scene(), scene())
