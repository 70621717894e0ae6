"""The most floating-point operations a second that this processor reaches: measured by a matrix multiplication."""

from __future__ import annotations

import time

import numpy as np

__all__ = ["SIDE", "MatrixMultiply"]

SIDE = 2048
"""Large enough to be bound by arithmetic, small enough for a tenth of a second on two cores."""


class MatrixMultiply:
    """Multiplies two FP32 matrices with NumPy, on as many threads as its BLAS takes, and keeps the best rate.

    Attributes:
        flops_per_second: of the fastest multiplication so far; 0 before the first.
    """

    def __init__(self, side: int = SIDE) -> None:
        random = np.random.default_rng(0)
        self._left, self._right = random.random((2, side, side), np.float32)
        self._product = np.empty((side, side), np.float32)
        self.flops_per_second = 0.0

    def run(self) -> None:
        """Multiply once more."""
        started = time.perf_counter()
        np.matmul(self._left, self._right, out=self._product)
        seconds = time.perf_counter() - started
        self.flops_per_second = max(self.flops_per_second, 2 * len(self._left) ** 3 / seconds)
