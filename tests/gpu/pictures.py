"""Pictures for the GPU checks, and how far two results may be apart."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from msan_runtime.contract import FULL_SCALE, PictureArray

LEAST_DB = 50.0
"""What ``msan verify`` asks of FP16; and of two runs of one engine, since a size's first runs use general kernels."""

MOST_LEVELS = 3
"""The same, of 255."""


def blurred_picture(height: int, width: int) -> PictureArray:
    """Random blocks, smeared to the right: edges and flat parts, as in a photograph that moved."""
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    sharp = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return np.mean([np.roll(sharp, shift, axis=1) for shift in range(9)], axis=0).astype(np.uint8)


def tiles_of(sizes: Iterable[tuple[int, int]]) -> list[PictureArray]:
    """Tiles that all differ: one in the place of another is far under ``LEAST_DB``."""
    random = np.random.default_rng(3)
    return [random.permutation(blurred_picture(*size).reshape(-1, 3)).reshape(1, *size, 3) for size in sizes]


def psnr_db(one: PictureArray, other: PictureArray) -> float:
    """Of pictures of one integer type."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(FULL_SCALE[one.dtype] ** 2 / max(error, 1e-9)))


def levels_apart(one: PictureArray, other: PictureArray) -> float:
    """The largest difference, in levels of 255."""
    return float(np.abs(one.astype(np.int64) - other).max()) * 255 / FULL_SCALE[one.dtype]


def assert_alike(given: PictureArray, expected: PictureArray) -> None:
    """Of one shape and type, and no further apart than ``msan verify`` allows."""
    assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
    apart = f"{levels_apart(given, expected):.2f} levels, {psnr_db(given, expected):.1f} dB"
    assert levels_apart(given, expected) <= MOST_LEVELS, apart
    assert psnr_db(given, expected) >= LEAST_DB, apart


def assert_like_single(results: Iterable[PictureArray], singles: list[PictureArray]) -> None:
    """Each result is the one that its tile gives alone."""
    for result, single in zip(results, singles, strict=True):
        assert psnr_db(result, single) >= LEAST_DB
