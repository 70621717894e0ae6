"""Pictures that the calibration is tested on."""

from __future__ import annotations

import numpy as np
import pytest

from msan_calib.samples import Sample


@pytest.fixture
def pictures() -> tuple[Sample, ...]:
    """Four smooth random pictures with detail, 40×48, that know what they should become."""
    rng = np.random.default_rng(11)
    found: list[Sample] = []
    for index in range(4):
        coarse = rng.integers(0, 256, (5, 6, 3)).repeat(8, axis=0).repeat(8, axis=1)
        fine = rng.integers(-20, 21, (40, 48, 3))
        sharp = np.clip(coarse + fine, 0, 255).astype(np.uint8)
        blurred = ((sharp.astype(int) + np.roll(sharp, 1, axis=1) + np.roll(sharp, 2, axis=1)) // 3).astype(np.uint8)
        found.append(Sample(name=str(index), blurred=blurred, sharp=sharp))
    return tuple(found)
