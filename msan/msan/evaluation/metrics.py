"""Picture metrics, on uint8 pictures as they would be saved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from msan_runtime.errors import ContractError

__all__ = ["check_comparable", "psnr_db"]


def psnr_db(picture: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, over all pixels and channels, in dB.

    10·log10(255² / mean squared difference), as MATLAB's ``psnr``; infinite for equal pictures.

    Raises:
        ContractError: if dtypes or shapes differ from that.
    """
    if picture.dtype != np.uint8 or reference.dtype != np.uint8 or picture.shape != reference.shape:
        raise ContractError(
            f"PSNR needs two uint8 pictures of one shape, not {_described(picture)} and {_described(reference)}"
        )
    error = float(np.mean(np.square(picture.astype(np.float64) - reference)))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def check_comparable(measure: str, picture: npt.NDArray[Any], reference: npt.NDArray[Any], *, side_px: int = 1) -> None:
    """Refuse what ``measure`` cannot compare: anything but two uint8 H×W×3 arrays of one shape, sides ≥ ``side_px``.

    Raises:
        ContractError: with both dtypes and shapes, or the size seen and needed.
    """
    height_width = picture.shape[:2]
    kinds = {(array.dtype, array.shape) for array in (picture, reference)}
    if kinds != {(np.dtype(np.uint8), (*height_width, 3))}:
        raise ContractError(
            f"{measure} needs two uint8 pictures of one shape (height, width, 3), "
            f"not {_described(picture)} and {_described(reference)}"
        )
    if min(height_width) < side_px:
        height, width = height_width
        raise ContractError(f"{measure} needs pictures of {side_px} px a side, not {height}×{width} px")


def _described(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"
