"""Tile plans: whatever the picture and the limits, tiles cover it, keep to the limits and to the grid of 8."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from msan_runtime.backends.base import TileLimits, check_tiles
from msan_runtime.errors import ContractError
from msan_runtime.tiles import TilePlan, plan_fixed_tiles, plan_tiles

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


def axis_choices(size: int, largest: int, overlap: int) -> list[tuple[int, int]]:
    """(tile, count) for every count of tiles that overlap by ``overlap`` and are no longer than ``largest``."""
    whole = [(size, 1)] if size <= largest else []
    counts = range(2, size // 8 + 1)
    tiles = ((8 * math.ceil((size + (count - 1) * overlap) / count / 8), count) for count in counts)
    return whole + [(tile, count) for tile, count in tiles if 2 * overlap <= tile <= largest]


def computed_px(plan: TilePlan) -> int:
    return len(plan) * plan.tile[0] * plan.tile[1]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(8, 150).map(lambda n: 8 * n),
    st.integers(8, 150).map(lambda n: 8 * n),
    st.integers(150 * 150, 500 * 500),
    st.sampled_from([0, 8, 32, 64]),
    st.none() | st.integers(10_000, 1_000_000),
)
@example(656, 656, 640 * 640, 64, None)
@example(1000, 1000, 640 * 640, 32, None)
def test_no_other_plan_is_cheaper(height: int, width: int, area: int, overlap: int, attention_px: int | None) -> None:
    """Against every pair of counts of tiles, tried one by one."""
    limits = TileLimits(area_px=area, attention_px=attention_px)
    plan = plan_tiles(height, width, limits, overlap_px=overlap)
    if len(plan) == 1:
        assert height * width <= area
        return
    costs = [
        rows
        * columns
        * tile_height
        * tile_width
        * (1 + (tile_height * tile_width / attention_px if attention_px else 0))
        for tile_height, rows in axis_choices(height, height, overlap)
        for tile_width, columns in axis_choices(width, width, overlap)
        if tile_height * tile_width <= area
    ]
    found = plan.tile[0] * plan.tile[1]
    # None of them fits where tiles of twice the overlap are over the area: the plan then overlaps less.
    assert (
        len(plan) * found * (1 + (found / attention_px if attention_px else 0)) <= min(costs, default=math.inf) + 1e-6
    )


def test_a_picture_just_too_large_becomes_two_tiles() -> None:
    plan = plan_tiles(656, 656, TileLimits(area_px=640 * 640), overlap_px=64)
    assert len(plan) == 2
    assert sorted(plan.tile) == [360, 656]


def test_equally_cheap_tiles_are_the_fewest_and_then_the_squarest() -> None:
    assert plan_tiles(512, 512, TileLimits(area_px=128 * 512), overlap_px=0).tile == (256, 256)


def test_costly_attention_asks_for_smaller_tiles() -> None:
    alone = plan_tiles(2000, 3000, TileLimits(area_px=10**6), overlap_px=32)
    dear = plan_tiles(2000, 3000, TileLimits(area_px=10**6, attention_px=500_000), overlap_px=32)
    assert len(dear) > len(alone)
    assert computed_px(dear) > computed_px(alone)


def test_computed_pixels_per_pixel_hardly_change_from_1_to_100_megapixels() -> None:
    for limits in (TileLimits(area_px=500_000), TileLimits(area_px=500_000, attention_px=2_400_000)):
        sizes = ((1000, 1000), (2000, 2000), (3000, 4000), (4000, 6000), (8660, 11547))
        waste = [computed_px(plan_tiles(h, w, limits)) / (h * w) for h, w in sizes]
        assert max(waste) / min(waste) < 1.15


@settings(deadline=None, max_examples=200)
@given(SIZES, SIZES, st.integers(8, 40), st.integers(8, 40), st.integers(0, 56))
def test_tiles_of_a_fixed_size_cover_the_picture_and_overlap(
    height: int, width: int, rows: int, columns: int, overlap: int
) -> None:
    tile = (8 * rows, 8 * columns)
    plan = plan_fixed_tiles(height, width, tile, TileLimits(area_px=10**6), overlap_px=overlap)
    padded = (-(-height // 8) * 8, -(-width // 8) * 8)
    assert plan.padded == padded
    assert plan.tile == (min(tile[0], padded[0]), min(tile[1], padded[1]))
    for starts, side, size in zip((plan.tops, plan.lefts), plan.tile, padded, strict=True):
        assert covered(starts, side, size)
        assert not [start for start in starts if start % 8]
        overlaps = [earlier + side - later for earlier, later in itertools.pairwise(starts)]
        assert all(seen >= overlap for seen in overlaps)
        assert not overlaps or max(overlaps) - min(overlaps) <= 8, "evenly spread"


@pytest.mark.parametrize(
    ("tile", "overlap", "words"),
    [
        ((64, 64), 64, "cannot overlap by 64"),
        ((64, 128), 57, "cannot overlap by 64"),
        ((60, 64), 0, "multiples of 8"),
        ((16, 64), 0, "smallest"),
        ((128, 64), 0, "largest 64"),
        ((64, 64), -8, "overlap of -8"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tile: tuple[int, int], overlap: int, words: str) -> None:
    limits = TileLimits(smallest=(32, 32), largest=(64, 128), area_px=64 * 128)
    plan_fixed_tiles(200, 200, (64, 128), limits, overlap_px=56)
    with pytest.raises(ContractError, match=words):
        plan_fixed_tiles(200, 200, tile, limits, overlap_px=overlap)


def test_a_picture_under_the_smallest_tile_is_enlarged_to_it() -> None:
    limits = TileLimits(smallest=(64, 64), area_px=10**6)
    assert plan_fixed_tiles(8, 200, (128, 128), limits, overlap_px=0).tile == (64, 128)


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
