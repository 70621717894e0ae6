"""Blending: weights are a partition of one, and the banded sum is the plain sum over the whole picture."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msan_runtime.backends.base import TileLimits
from msan_runtime.blend import TileBlender, axis_weights
from msan_runtime.contract import PictureArray
from msan_runtime.tiles import TilePlan, plan_tiles


@st.composite
def axes(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """Starts of overlapping or touching tiles, and the tile's length."""
    tile = draw(st.integers(1, 200))
    gaps = draw(st.lists(st.integers(1, tile), max_size=8))
    return tuple(itertools.accumulate(gaps, initial=0)), tile


def blend(plan: TilePlan, height: int, width: int, tiles: list[PictureArray]) -> PictureArray:
    blender = TileBlender(plan, height, width)
    for tile, (row, column) in zip(tiles, np.ndindex(len(plan.tops), len(plan.lefts)), strict=True):
        blender.add(row, column, tile)
    return blender.picture


def plain_sum(plan: TilePlan, tiles: list[PictureArray]) -> npt.NDArray[np.float64]:
    """The weighted sum of tiles over the whole padded picture, in float64."""
    total = np.zeros((*plan.padded, 3))
    rows, columns = axis_weights(plan.tops, plan.tile[0]), axis_weights(plan.lefts, plan.tile[1])
    weights = [np.outer(row, column)[:, :, None] for row in rows for column in columns]
    for region, weight, tile in zip(plan.regions(), weights, tiles, strict=True):
        total[region.slices] += weight * tile.astype(np.float64)
    return total


@settings(deadline=None, max_examples=200)
@given(axes())
def test_weights_are_positive_and_sum_to_one(axis: tuple[tuple[int, ...], int]) -> None:
    starts, tile = axis
    total = np.zeros(starts[-1] + tile)
    for start, weights in zip(starts, axis_weights(starts, tile), strict=True):
        assert weights.shape == (tile,)
        assert weights.min() > 0
        total[start : start + tile] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("overlap", [2, 8, 64])
def test_two_tiles_fade_linearly_into_each_other(overlap: int) -> None:
    first, second = axis_weights((0, 100 - overlap), 100)
    np.testing.assert_allclose(first[: 100 - overlap], 1)
    np.testing.assert_allclose(first[100 - overlap :], 1 - (np.arange(overlap) + 0.5) / overlap, atol=1e-6)
    np.testing.assert_allclose(second, first[::-1], atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(64, 4000), st.integers(0, 2**32 - 1))
def test_the_banded_sum_is_the_plain_sum(height: int, width: int, area: int, seed: int) -> None:
    plan = plan_tiles(height, width, TileLimits(area_px=area))
    rng = np.random.default_rng(seed)
    tiles = [rng.integers(0, 256, (*plan.tile, 3), np.uint8) for _ in range(len(plan))]
    found = blend(plan, height, width, tiles)
    assert found.shape == (height, width, 3)
    np.testing.assert_allclose(found, plain_sum(plan, tiles)[:height, :width], atol=0.5 + 1e-3)


def test_a_step_between_tiles_becomes_a_ramp_without_overshoot() -> None:
    plan = TilePlan(padded=(16, 48), tile=(16, 32), tops=(0,), lefts=(0, 16))
    dark, light = np.full((16, 32, 3), 10, np.uint8), np.full((16, 32, 3), 234, np.uint8)
    profile = blend(plan, 16, 48, [dark, light])[:, :, 0].astype(int)
    assert (profile == profile[0]).all()
    assert (np.diff(profile[0, 16:32]) == 14).all()
    assert (profile[0, :16] == 10).all()
    assert (profile[0, 32:] == 234).all()
