"""PSNR and SSIM after alignment, as the RealBlur benchmark is measured.

RealBlur's blurred and sharp pictures come from two cameras, and a deblurred picture may be shifted as a
whole, so the published evaluation (Rim et al., ECCV 2020; ``evaluation_RealBlur_ecc.py`` of
rimchang/RealBlur, after Köhler et al., ECCV 2012) first matches intensity and warps by a homography.
Unaligned scores are some 2 dB lower. Its steps and constants are kept here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from msan.evaluation.metrics import check_comparable
from msan.evaluation.ssim import ssim_map
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, MsanError

__all__ = ["Aligned", "AlignmentError", "align", "aligned_psnr_db", "aligned_ssim"]

FloatPicture = npt.NDArray[np.float32]

ITERATIONS = 100
GAUSSIAN_PX = 5
"""Side of the filter that ECC smooths both pictures with."""

CORRELATION_LOSS = 1e-3
"""ECC maximises the correlation. On small smooth pictures its iterations may run away: not counted as aligned."""

WINDOW_PX = 11
"""Side of the SSIM window of σ 1.5 cut off at 3.5 σ."""


class AlignmentError(MsanError):
    """Two pictures that cannot be brought into register."""


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A picture brought into register with its reference. Both are zero where the mask is ``False``.

    Attributes:
        picture: float32 H×W×3, sRGB scaled to [0, 1], times ``gain``, warped; not clipped.
        reference: float32 H×W×3 in [0, 1].
        mask: bool H×W, ``True`` where the warped picture is known; somewhere it is.
        gain: factor on intensity, found before the warp, as published.
        homography: float32 3×3, from (x, y, 1) in the reference to the same in the picture.
    """

    picture: FloatPicture
    reference: FloatPicture
    mask: npt.NDArray[np.bool_]
    gain: float
    homography: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.picture.shape != self.reference.shape or self.mask.shape != self.picture.shape[:2]:
            shapes = f"{self.picture.shape}, {self.reference.shape} and mask {self.mask.shape}"
            raise AlignmentError(f"aligned pictures must be of one size, not {shapes}")
        if not _inside(self.mask).any():
            raise AlignmentError("the aligned pictures do not overlap. Do they show one scene?")


def align(picture: PictureArray, reference: PictureArray) -> Aligned:
    """Match the intensity of ``picture`` to ``reference`` (least squares) and warp it onto it.

    The homography maximises the enhanced correlation coefficient (ECC; Evangelidis and Psarakis, IEEE
    TPAMI 2008) of the grey pictures, in 100 iterations from the identity. There is no fallback: a score
    without alignment is another measure.

    Args:
        picture: the deblurred picture, uint8 H×W×3, 11 px a side or more.
        reference: the sharp one, the same.

    Raises:
        ContractError: if dtypes, shapes or size differ from that.
        AlignmentError: for a black picture; if ECC fails (flat pictures, different scenes) or ends at a lower
            correlation than it began with; if nothing overlaps.
        MissingExtraError: if OpenCV is not installed.
    """
    check_comparable("alignment", picture, reference, side_px=WINDOW_PX)
    z, x = (array.astype(np.float32) / np.float32(255) for array in (picture, reference))
    gain = _least_squares_gain(z, x)
    z *= np.float32(gain)
    homography = _ecc_homography(z, x)
    warped, mask = _warped(z, homography)
    known = mask[:, :, np.newaxis]
    return Aligned(picture=warped * known, reference=x * known, mask=mask, gain=gain, homography=homography)


def aligned_psnr_db(aligned: Aligned) -> float:
    """PSNR over the pixels inside the mask and all channels, peak 1, in dB; infinite for equal pictures."""
    error = np.square(aligned.picture.astype(np.float64) - aligned.reference)[aligned.mask].mean()
    return math.inf if error == 0 else -10 * math.log10(error)


def aligned_ssim(aligned: Aligned) -> float:
    """SSIM with Gaussian windows (σ 1.5, 11×11, population moments), averaged inside the mask; at most 1.

    Averaged are the pixels inside the mask and 5 px or more from the border. As published, windows at the
    mask's edge see the zeros outside it, in both pictures.

    Raises:
        MissingExtraError: if scikit-image is not installed.
    """
    similarity = ssim_map(aligned.picture, aligned.reference)
    return float(_inside(similarity)[_inside(aligned.mask)].mean())


def _inside(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the border in which SSIM windows would reach out of the picture."""
    border = WINDOW_PX // 2
    return array[border:-border, border:-border]


def _least_squares_gain(z: FloatPicture, x: FloatPicture) -> float:
    energy = float(np.sum(z * z, dtype=np.float64))
    if energy == 0:
        raise AlignmentError("a black picture cannot be aligned to its reference")
    return float(np.sum(x * z, dtype=np.float64)) / energy


def _ecc_homography(z: FloatPicture, x: FloatPicture) -> FloatPicture:
    cv2 = _opencv()
    grey_x, grey_z = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (x, z))
    try:
        before, _ = _ecc(grey_x, grey_z, iterations=1)
        after, homography = _ecc(grey_x, grey_z, iterations=ITERATIONS)
    except cv2.error as error:
        raise AlignmentError(
            f"ECC found no alignment ({str(error.err).rstrip('.')}). Are the pictures flat, or of different scenes?"
        ) from error
    if after < before - CORRELATION_LOSS:
        raise AlignmentError(
            f"ECC diverged: the correlation fell from {before:.4f} to {after:.4f}. "
            "Are the pictures too small or too smooth?"
        )
    return np.asarray(homography, np.float32)


def _ecc(reference: FloatPicture, picture: FloatPicture, *, iterations: int) -> tuple[float, FloatPicture]:
    """Correlation as the last iteration found it, and the homography after it."""
    cv2 = _opencv()
    # An epsilon of 0 never stops it: all iterations run, as published.
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, iterations, 0.0)
    everywhere = np.ones(reference.shape, np.uint8)
    start = np.eye(3, dtype=np.float32)
    return cv2.findTransformECC(reference, picture, start, cv2.MOTION_HOMOGRAPHY, criteria, everywhere, GAUSSIAN_PX)


def _warped(z: FloatPicture, homography: FloatPicture) -> tuple[FloatPicture, npt.NDArray[np.bool_]]:
    """``z`` seen from the reference, and where that is known."""
    cv2 = _opencv()
    size = (z.shape[1], z.shape[0])
    cubic, nearest = (flag | cv2.WARP_INVERSE_MAP for flag in (cv2.INTER_CUBIC, cv2.INTER_NEAREST))
    warped = cv2.warpPerspective(z, homography, size, flags=cubic, borderMode=cv2.BORDER_REFLECT)
    ones = np.ones(z.shape[:2], np.float32)
    mask = cv2.warpPerspective(ones, homography, size, flags=nearest, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(warped, np.float32), np.asarray(mask) > 0


def _opencv() -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingExtraError("opencv-python-headless", "evaluate") from error
    return cv2
