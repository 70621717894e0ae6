"""What a conversion must reach to pass: set before anything is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FLOAT_FP32", "QUANTIZED", "UINT8", "Threshold"]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Bounds on the difference to PyTorch in FP32.

    Attributes:
        max_difference: largest absolute difference of any value: in [0, 1] units for float
            pictures, in grey levels for uint8.
        psnr_db: least PSNR, with peak 1.0 or 255.
        peak: 1.0 for float pictures, 255 for uint8.
    """

    max_difference: float
    psnr_db: float
    peak: float

    def allows(self, max_difference: float, psnr_db: float) -> bool:
        """Whether both figures are within bounds; not-a-number never is."""
        return max_difference <= self.max_difference and psnr_db >= self.psnr_db and not math.isnan(psnr_db)


FLOAT_FP32 = Threshold(max_difference=1e-4, psnr_db=100.0, peak=1.0)
"""FP32 graph against PyTorch, before rounding to 8 bits."""

UINT8 = Threshold(max_difference=3.0, psnr_db=50.0, peak=255.0)
"""Any graph or engine against PyTorch in FP32, on saved pictures."""

QUANTIZED = Threshold(max_difference=64.0, psnr_db=40.0, peak=255.0)
"""An INT8 or FP8 graph or engine against PyTorch in FP32: that it is the same picture. What it may lose of quality is
held to the budget of ``msan calibrate``, on pictures whose sharp form is known."""
