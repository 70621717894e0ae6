"""SSIM against its formula written out over every window, and against closed forms."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from msan.evaluation.ssim import ssim_map, ssim_matlab3d, ssim_skimage
from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError, MissingExtraError

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

both = pytest.mark.parametrize("ssim", [ssim_matlab3d, ssim_skimage])
levels = st.integers(0, 255)


def noise_picture(height: int, width: int, seed: int) -> PictureArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def disturbed(picture: PictureArray, amount: float) -> PictureArray:
    noise = np.random.default_rng(9).normal(0, amount, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def flat(level: int, height: int = 9, width: int = 8) -> PictureArray:
    return np.full((height, width, 3), level, np.uint8)


def gaussian(size: int) -> npt.NDArray[np.float64]:
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * 1.5**2))
    return weights / weights.sum()


def ssim_of_volume(picture: PictureArray, reference: PictureArray) -> float:
    """Every 11×11×11 window at once, as one convolution of the volume with its edges repeated."""
    one = torch.from_numpy(gaussian(11))
    kernel = (one[:, None, None] * one[:, None] * one)[None, None]

    def mean(volume: torch.Tensor) -> torch.Tensor:
        return F.conv3d(F.pad(volume[None, None], (5,) * 6, mode="replicate"), kernel)

    x, y = torch.from_numpy(picture).double(), torch.from_numpy(reference).double()
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return float(((2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))).mean())


def windowed_ssim(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], window: npt.NDArray[np.float64], c1: float, c2: float
) -> npt.NDArray[np.float64]:
    """SSIM of every whole window of every channel, H'×W'×3: moments by their definition."""
    views = [np.lib.stride_tricks.sliding_window_view(one, window.shape, (0, 1)) for one in (x, y)]
    mx, my = ((view * window).sum((-2, -1)) for view in views)
    dx, dy = views[0] - mx[..., None, None], views[1] - my[..., None, None]
    vx, vy, cov = ((product * window).sum((-2, -1)) for product in (dx * dx, dy * dy, dx * dy))
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@pytest.mark.parametrize(("height", "width"), [(16, 21), (11, 11), (4, 30), (1, 1)])
@pytest.mark.parametrize("amount", [3.0, 60.0])
def test_matlab3d_is_the_formula_over_windows_of_the_volume(height: int, width: int, amount: float) -> None:
    picture = noise_picture(height, width, 3)
    other = disturbed(picture, amount)
    assert ssim_matlab3d(picture, other) == pytest.approx(ssim_of_volume(picture, other), abs=1e-12)


@pytest.mark.parametrize("amount", [3.0, 60.0])
def test_skimage_is_the_formula_over_uniform_windows_of_each_channel(amount: float) -> None:
    picture = noise_picture(16, 21, 4)
    other = disturbed(picture, amount)
    x, y = picture.astype(np.float64), other.astype(np.float64)
    # Sample variances: 49 / 48 of the population's. Equal factors cancel against a smaller C2.
    expected = windowed_ssim(x, y, np.full((7, 7), 1 / 49), C1, C2 * 48 / 49).mean()
    assert ssim_skimage(picture, other) == pytest.approx(expected, abs=1e-12)


def test_the_map_is_the_formula_over_gaussian_windows_of_each_channel() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.random((15, 18, 3)), rng.random((15, 18, 3))
    expected = windowed_ssim(x, y, np.outer(gaussian(11), gaussian(11)), 0.01**2, 0.03**2)
    found = ssim_map(x.astype(np.float32), y.astype(np.float32))
    assert found.shape == (15, 18, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[5:-5, 5:-5], expected, atol=1e-5)


@both
def test_equal_pictures_have_ssim_1(ssim: Callable[..., float]) -> None:
    picture = noise_picture(12, 10, 0)
    assert ssim(picture, picture.copy()) == pytest.approx(1, abs=1e-12)


@both
@settings(max_examples=20, deadline=None)
@given(a=levels, b=levels)
def test_flat_pictures_differ_in_luminance_alone(ssim: Callable[..., float], a: int, b: int) -> None:
    assert ssim(flat(a), flat(b)) == pytest.approx((2 * a * b + C1) / (a * a + b * b + C1), abs=1e-9)


pictures = arrays(np.uint8, (8, 7, 3), elements=levels)


@both
@settings(max_examples=20, deadline=None)
@given(x=pictures, y=pictures)
def test_ssim_is_symmetric_and_at_most_1(ssim: Callable[..., float], x: PictureArray, y: PictureArray) -> None:
    value = ssim(x, y)
    assert ssim(y, x) == pytest.approx(value, abs=1e-9)
    assert -1 <= value <= 1 + 1e-9


@both
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 4), (2, 9, 8, 3)])
def test_what_is_no_rgb_picture_is_refused(ssim: Callable[..., float], shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.uint8)
    with pytest.raises(ContractError, match=r"SSIM \(\w+\) needs two uint8 pictures of one shape .*not uint8 \("):
        ssim(array, array)


@both
def test_two_shapes_and_other_dtypes_are_refused(ssim: Callable[..., float]) -> None:
    with pytest.raises(ContractError, match=r"not uint8 \(9, 8, 3\) and uint8 \(8, 9, 3\)"):
        ssim(flat(1, 9, 8), flat(1, 8, 9))
    with pytest.raises(ContractError, match=r"not float32 \(9, 8, 3\) and uint8 \(9, 8, 3\)"):
        ssim(flat(1).astype(np.float32), flat(1))


def test_skimage_names_the_size_it_needs() -> None:
    assert ssim_skimage(flat(1, 7, 7), flat(1, 7, 7)) == pytest.approx(1)
    with pytest.raises(ContractError, match=r"SSIM \(skimage\) needs pictures of 7 px a side, not 20×6 px"):
        ssim_skimage(flat(1, 20, 6), flat(1, 20, 6))


@pytest.mark.parametrize(
    ("ssim", "module", "package"),
    [(ssim_matlab3d, "scipy.ndimage", "scipy"), (ssim_skimage, "skimage.metrics", "scikit-image")],
)
def test_a_missing_package_is_named_with_its_extra(
    ssim: Callable[..., float], module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*msan\[evaluate\]"):
        ssim(flat(1), flat(1))
