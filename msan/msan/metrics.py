"""Picture metrics, on uint8 pictures as they would be saved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from msan_runtime.errors import ContractError

__all__ = ["psnr_db"]


def psnr_db(picture: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, over all pixels and channels, in dB.

    10·log10(255² / mean squared difference), as MATLAB's ``psnr``; infinite for equal pictures.

    Raises:
        ContractError: if dtypes or shapes differ from that.
    """
    if picture.dtype != np.uint8 or reference.dtype != np.uint8 or picture.shape != reference.shape:
        raise ContractError(
            f"PSNR needs two uint8 pictures of one shape, not {picture.dtype} {picture.shape} "
            f"and {reference.dtype} {reference.shape}"
        )
    error = float(np.mean(np.square(picture.astype(np.float64) - reference)))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
