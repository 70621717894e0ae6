"""The shipped bundle's native engine on a GPU, against ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from msan_runtime import Deblurrer
from msan_runtime.backends import rtx
from msan_runtime.backends.cuda import gpu_problem
from msan_runtime.contract import PictureArray

pytestmark = pytest.mark.gpu

LEAST_DB = 50.0


@pytest.fixture(scope="module", autouse=True)
def needs_a_gpu() -> None:
    problem = gpu_problem() or rtx.unavailable()
    if problem is not None:
        pytest.skip(problem)


@pytest.fixture(scope="module")
def native() -> Iterator[Deblurrer]:
    with Deblurrer.load(backend="rtx") as deblurrer:
        yield deblurrer


@pytest.fixture(scope="module")
def reference() -> Iterator[Deblurrer]:
    with Deblurrer.load(backend="ort-cpu") as deblurrer:
        yield deblurrer


def blurred_picture(height: int, width: int) -> PictureArray:
    """Random blocks, smeared to the right: edges and flat parts, as in a photograph that moved."""
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    sharp = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return np.mean([np.roll(sharp, shift, axis=1) for shift in range(9)], axis=0).astype(np.uint8)


def psnr_db(one: PictureArray, other: PictureArray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# Sizes that both backends take as one tile: attention is global, so other tiles mean another result.
@pytest.mark.parametrize(("height", "width"), [(256, 256), (250, 371), (480, 640)])
def test_native_engine_agrees_with_onnx_runtime(
    native: Deblurrer, reference: Deblurrer, height: int, width: int
) -> None:
    picture = blurred_picture(height, width)
    native_picture, reference_picture = native.deblur(picture), reference.deblur(picture)
    assert native_picture.shape == picture.shape
    assert psnr_db(native_picture, reference_picture) >= LEAST_DB


def test_a_batch_gives_what_single_tiles_give(native: Deblurrer) -> None:
    height, width = native.backend.limits.smallest
    tiles = np.stack([blurred_picture(height, width), 255 - blurred_picture(height, width)] * 3)
    together = native.backend.infer(tiles)
    alone = np.concatenate([native.backend.infer(tile[None]) for tile in tiles])
    assert psnr_db(together, alone) >= LEAST_DB


def test_repeating_a_picture_repeats_the_result(native: Deblurrer) -> None:
    picture = blurred_picture(256, 256)
    first = native.deblur(picture)
    for _ in range(5):
        assert psnr_db(native.deblur(picture), first) >= LEAST_DB


def test_the_largest_tile_has_no_holes(native: Deblurrer) -> None:
    """Beyond some 65,504 keys fused attention gives NaN, which becomes black: the limits stay under it."""
    limits = native.backend.limits
    height, width = limits.largest or (2048, 2040)
    height = min(height, limits.area_px // width // 8 * 8)
    tile = blurred_picture(height, width)[None]
    assert psnr_db(native.backend.infer(tile), tile) >= 15.0
