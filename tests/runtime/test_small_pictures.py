"""Small pictures run together: each result is what the picture gives by itself, to the bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator

import numpy as np
import pytest

from msan_runtime import Deblurrer
from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError
from msan_runtime.tiling import Batch

SIZES = [(1, 1), (8, 8), (5, 3), (30, 29), (32, 32), (25, 31), (57, 64), (64, 60), (64, 64), (9, 250), (16, 256)]


@pytest.fixture
def deblurrer() -> Generator[Deblurrer]:
    with Deblurrer.load("msan-s", "ort-cpu") as opened:
        yield opened


def photo(height: int, width: int, seed: int) -> PictureArray:
    """Smooth shapes and noise, so that no layer idles."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width, :1].astype(np.float64)[:2]
    waves = 127 + 100 * np.sin(rows / random.uniform(2, 9) + columns / random.uniform(2, 9) + np.arange(3))
    return np.clip(waves + random.normal(0, 9, (height, width, 3)), 0, 255).astype(np.uint8)


def test_a_batch_gives_what_each_gives_by_itself(deblurrer: Deblurrer) -> None:
    groups: defaultdict[Batch, list[PictureArray]] = defaultdict(list)
    for number in range(4 * len(SIZES)):
        picture = photo(*SIZES[number % len(SIZES)], number)
        groups[deblurrer.batch(picture)].append(picture)
    assert {batch.tile for batch in groups} == {(8, 8), (32, 32), (64, 64), (16, 256)}
    for batch, pictures in groups.items():
        assert batch.size >= 4
        together = deblurrer.deblur_batch(pictures[: batch.size])
        for picture, result in zip(pictures, together, strict=False):
            np.testing.assert_array_equal(result, deblurrer.deblur(picture))


def test_large_and_deep_pictures_run_alone(deblurrer: Deblurrer) -> None:
    assert deblurrer.batch(np.zeros((64, 65, 3), np.uint8)).size == 1
    assert deblurrer.batch(np.zeros((3000, 4000, 3), np.uint8)).size == 1
    assert deblurrer.batch(np.zeros((8, 8, 3), np.uint16)).size == 1


def test_what_does_not_belong_together_is_refused(deblurrer: Deblurrer) -> None:
    small, other = np.zeros((8, 8, 3), np.uint8), np.zeros((16, 8, 3), np.uint8)
    size = deblurrer.batch(small).size
    for pictures in ([small, other], [small] * (size + 1), []):
        with pytest.raises(ContractError, match="do not run together"):
            deblurrer.deblur_batch(pictures)
    with pytest.raises(ContractError):
        deblurrer.deblur_batch([np.zeros((8, 8), np.uint8)])
