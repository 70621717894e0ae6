"""Structural similarity (SSIM) of two pictures, in the two definitions that deblurring papers print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from msan.evaluation.metrics import check_comparable
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError

__all__ = ["ssim_map", "ssim_matlab3d", "ssim_skimage"]

FloatArray = npt.NDArray[np.float64]

C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2


def ssim_matlab3d(picture: PictureArray, reference: PictureArray) -> float:
    """SSIM as MATLAB's ``ssim`` computes it of an H×W×3 array, which it takes for a volume; at most 1.

    The number of the GoPro and HIDE tables. Eq. 13 of Wang et al. (IEEE TIP 2004), K1 = 0.01, K2 = 0.03,
    L = 255, in Gaussian windows of 11×11×11 with σ 1.5, edges replicated, averaged over all voxels. As the
    window spans the three channels too, it is higher than ``ssim_skimage`` for blurred pictures.

    Args:
        picture: uint8 H×W×3, of any size.
        reference: the same.

    Raises:
        ContractError: if dtypes or shapes differ from that.
        MissingExtraError: if SciPy is not installed.
    """
    check_comparable("SSIM (matlab3d)", picture, reference)
    x, y = picture.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _windowed_mean(x), _windowed_mean(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = _windowed_mean(x * y) - product
    variances = _windowed_mean(x**2 + y**2) - squares
    similarity = (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return float(similarity.mean())


def ssim_skimage(picture: PictureArray, reference: PictureArray) -> float:
    """SSIM as scikit-image computes it by default of each channel, averaged; at most 1.

    ``structural_similarity(channel_axis=2, data_range=255)``: uniform windows of 7×7, sample covariance,
    a border of 3 px left out.

    Args:
        picture: uint8 H×W×3, 7 px a side or more.
        reference: the same.

    Raises:
        ContractError: if dtypes, shapes or size differ from that.
        MissingExtraError: if scikit-image is not installed.
    """
    check_comparable("SSIM (skimage)", picture, reference, side_px=7)
    return float(_structural_similarity()(picture, reference, channel_axis=2, data_range=255))


def ssim_map(picture: npt.NDArray[Any], reference: npt.NDArray[Any]) -> FloatArray:
    """SSIM of each pixel and channel of two H×W×3 pictures of peak 1, in Gaussian windows; float64 H×W×3.

    Windows of 11×11 with σ 1.5, population moments, edges reflected: Eq. 13 of Wang et al. as they use it.

    Raises:
        MissingExtraError: if scikit-image is not installed.
    """
    _, similarity = _structural_similarity()(
        picture.astype(np.float64),
        reference.astype(np.float64),
        channel_axis=2,
        gaussian_weights=True,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    return similarity


def _structural_similarity() -> Callable[..., Any]:
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-image", "evaluate") from error
    return structural_similarity


def _windowed_mean(volume: FloatArray) -> FloatArray:
    try:
        from scipy.ndimage import gaussian_filter
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "evaluate") from error
    return np.asarray(gaussian_filter(volume, sigma=1.5, radius=5, mode="nearest"), np.float64)
