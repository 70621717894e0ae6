"""Tile plans: whatever the picture and the limits, tiles cover it, keep to the limits and to the grid of 8."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msan_runtime.backends.base import TileLimits, check_tiles
from msan_runtime.errors import ContractError
from msan_runtime.tiles import DEFAULT_OVERLAP_PX, TilePlan, plan_tiles

SIZES = st.integers(1, 5000)
OVERLAPS = st.integers(0, 16).map(lambda steps: 8 * steps)


@st.composite
def tile_limits(draw: st.DrawFn) -> TileLimits:
    eighths = st.integers(1, 64)
    smallest = (8 * draw(eighths), 8 * draw(eighths))
    more = st.integers(0, 128)
    largest = draw(st.none() | st.tuples(more, more).map(lambda n: (smallest[0] + 8 * n[0], smallest[1] + 8 * n[1])))
    area = smallest[0] * smallest[1] + draw(st.integers(0, 300_000))
    return TileLimits(smallest=smallest, largest=largest, area_px=area)


def covered(starts: tuple[int, ...], tile: int, size: int) -> bool:
    seen = np.zeros(size, bool)
    for start in starts:
        seen[start : start + tile] = True
    return bool(seen.all())


@settings(deadline=None, max_examples=300)
@given(SIZES, SIZES, tile_limits(), OVERLAPS)
@example(1, 5000, TileLimits(area_px=64), 64)
@example(5000, 5000, TileLimits(smallest=(8, 512), area_px=4096), 64)
def test_tiles_cover_the_picture_within_the_limits(height: int, width: int, limits: TileLimits, overlap: int) -> None:
    plan = plan_tiles(height, width, limits, overlap_px=overlap)
    assert plan.padded[0] >= height
    assert plan.padded[1] >= width
    assert covered(plan.tops, plan.tile[0], plan.padded[0])
    assert covered(plan.lefts, plan.tile[1], plan.padded[1])
    check_tiles(np.empty((1, *plan.tile, 3), np.uint8), limits)
    assert plan.tile[0] * plan.tile[1] <= limits.area_px


@settings(deadline=None, max_examples=300)
@given(SIZES, SIZES, tile_limits(), OVERLAPS)
def test_everything_lies_on_the_grid_of_8(height: int, width: int, limits: TileLimits, overlap: int) -> None:
    plan = plan_tiles(height, width, limits, overlap_px=overlap)
    assert not [n for n in (*plan.padded, *plan.tile, *plan.tops, *plan.lefts) if n % 8]


@settings(deadline=None, max_examples=300)
@given(SIZES, SIZES, tile_limits(), OVERLAPS)
def test_neighbours_overlap_as_asked_unless_tiles_are_small(
    height: int, width: int, limits: TileLimits, overlap: int
) -> None:
    plan = plan_tiles(height, width, limits, overlap_px=overlap)
    for starts, tile in zip((plan.tops, plan.lefts), plan.tile, strict=True):
        for earlier, later in itertools.pairwise(starts):
            assert earlier + tile - later >= overlap or tile < 2 * overlap


@settings(deadline=None, max_examples=200)
@given(SIZES, SIZES, tile_limits())
@example(40, 24, TileLimits(area_px=960))
@example(40, 25, TileLimits(area_px=960))
@example(64, 64, TileLimits(largest=(64, 64), area_px=8192))
def test_a_picture_that_fits_is_one_tile(height: int, width: int, limits: TileLimits) -> None:
    padded = [max(-(-side // 8) * 8, least) for side, least in zip((height, width), limits.smallest, strict=True)]
    largest = limits.largest or (5000, 5000)
    fits = padded[0] * padded[1] <= limits.area_px and padded[0] <= largest[0] and padded[1] <= largest[1]
    assert (len(plan_tiles(height, width, limits)) == 1) is fits


@settings(deadline=None, max_examples=200)
@given(SIZES, st.integers(16, 200).map(lambda steps: 8 * steps))
def test_one_tile_fewer_would_not_reach_across(size: int, largest: int) -> None:
    count = len(plan_tiles(size, 8, TileLimits(largest=(largest, 8), area_px=5000 * 8)))
    reach_of_fewer = (count - 1) * largest - (count - 2) * DEFAULT_OVERLAP_PX
    assert count == 1 or reach_of_fewer < size + 7


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(64, 5000))
def test_regions_paint_every_pixel(height: int, width: int, area: int) -> None:
    plan = plan_tiles(height, width, TileLimits(area_px=area))
    painted = np.zeros(plan.padded, int)
    for region in plan.regions():
        painted[region.slices] += 1
    assert painted.min() >= 1
    assert painted.sum() == len(plan) * plan.tile[0] * plan.tile[1]


@pytest.mark.parametrize(("height", "width", "overlap"), [(0, 8, 64), (8, 0, 64), (-1, 8, 64), (8, 8, -1)])
def test_an_empty_picture_or_a_negative_overlap_is_refused(height: int, width: int, overlap: int) -> None:
    with pytest.raises(ContractError, match=f"{height}×{width}"):
        plan_tiles(height, width, TileLimits(area_px=4096), overlap_px=overlap)


@pytest.mark.parametrize(
    ("tops", "lefts"),
    [((0, 32), (0,)), ((8, 24), (0,)), ((0, 16, 32), (0,)), ((0, 0, 24), (0,)), ((0, 24), (8,))],
)
def test_a_plan_with_a_gap_or_beyond_the_edge_is_refused(tops: tuple[int, ...], lefts: tuple[int, ...]) -> None:
    TilePlan(padded=(48, 24), tile=(24, 24), tops=(0, 24), lefts=(0,))
    with pytest.raises(ContractError, match="do not cover"):
        TilePlan(padded=(48, 24), tile=(24, 24), tops=tops, lefts=lefts)


@pytest.mark.parametrize(
    ("smallest", "largest", "area", "words"),
    [
        ((12, 8), None, 4096, "multiples of 8"),
        ((0, 8), None, 4096, "multiples of 8"),
        ((8, 8), (64, 65), 4096, "multiples of 8"),
        ((64, 64), None, 4095, "under the smallest"),
        ((64, 64), (64, 56), 4096, "under the smallest"),
    ],
)
def test_limits_that_no_tile_meets_are_refused(
    smallest: tuple[int, int], largest: tuple[int, int] | None, area: int, words: str
) -> None:
    with pytest.raises(ContractError, match=words):
        TileLimits(smallest=smallest, largest=largest, area_px=area)


@pytest.mark.parametrize(
    ("height", "width", "words"), [(20, 16, "multiples"), (8, 16, "smallest"), (16, 40, "largest")]
)
def test_a_tile_beyond_the_limits_is_refused(height: int, width: int, words: str) -> None:
    limits = TileLimits(smallest=(16, 16), largest=(32, 32), area_px=1024)
    check_tiles(np.empty((1, 16, 32, 3), np.uint8), limits)
    with pytest.raises(ContractError, match=words):
        check_tiles(np.empty((1, height, width, 3), np.uint8), limits)
