"""Differences of two arrays in the figures that are held against bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["differences", "levels_apart", "tensor_differences"]


def differences(expected: npt.NDArray[Any], given: npt.NDArray[Any], peak: float) -> tuple[float, float]:
    """Largest absolute difference, and PSNR in dB; both NaN if shapes differ or a value is not finite."""
    if expected.shape != given.shape:
        return math.nan, math.nan
    apart = given.astype(np.float64) - expected
    if not np.isfinite(apart).all():
        return math.nan, math.nan
    error = float(np.mean(np.square(apart)))
    return float(np.abs(apart).max(initial=0.0)), math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def tensor_differences(expected: npt.NDArray[Any], given: npt.NDArray[Any]) -> tuple[float, float]:
    """:func:`differences` in shares of the largest magnitude expected, or of 1.0 where that is less."""
    size = max(1.0, float(np.abs(expected).max(initial=0.0)))
    worst, psnr_db = differences(expected, given, size)
    return worst / size, psnr_db


def levels_apart(one: npt.NDArray[Any], other: npt.NDArray[Any], levels: float = 1.0) -> float:
    """Largest difference; 0 if the arrays are equal to the bit, infinite if one holds what the other does not.

    ``levels`` are in a unit of the arrays: 255 for pictures from 0 to 1.
    """
    if np.array_equal(one, other):
        return 0.0
    worst, _ = differences(one, other, 1.0)
    return math.inf if math.isnan(worst) else worst * levels
