"""Tiles: a plan of equal, overlapping regions that cover a picture. Integers only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from msan_runtime.backends.base import TileLimits, check_tile_size
from msan_runtime.contract import SIZE_MULTIPLE, round_up
from msan_runtime.errors import ContractError

__all__ = ["DEFAULT_OVERLAP_PX", "Region", "TilePlan", "plan_fixed_tiles", "plan_tiles"]

DEFAULT_OVERLAP_PX = 32
"""Picked from the curve of quality over overlap in docs/tiles.md."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of pixels: rows ``top`` to ``top + height``, columns ``left`` to ``left + width``."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices for an array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Equal tiles that cover a picture enlarged to ``padded``.

    Attributes:
        padded: (height, width) of what the tiles cover, multiples of 8: the picture, and a little more at its
            lower and right border.
        tile: (height, width) of every tile, multiples of 8.
        tops, lefts: first rows and columns of the tiles, ascending; a tile for every pair.

    Raises:
        ContractError: if the tiles do not cover ``padded`` exactly.
    """

    padded: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __post_init__(self) -> None:
        for starts, tile, size in zip((self.tops, self.lefts), self.tile, self.padded, strict=True):
            gaps = (later - earlier for earlier, later in itertools.pairwise(starts))
            if starts[0] != 0 or starts[-1] + tile != size or not all(0 < gap <= tile for gap in gaps):
                raise ContractError(f"tiles of {tile} px at {starts} do not cover {size} px")

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def regions(self) -> Iterator[Region]:
        """Every tile, row by row."""
        for top in self.tops:
            for left in self.lefts:
                yield Region(top=top, left=left, height=self.tile[0], width=self.tile[1])


@lru_cache(maxsize=256)
def plan_tiles(height: int, width: int, limits: TileLimits, *, overlap_px: int = DEFAULT_OVERLAP_PX) -> TilePlan:
    """One tile if the whole picture fits ``limits``, else the cheapest tiles that do.

    Tiles overlap by at least ``overlap_px`` (less where tiles are smaller than twice that), evenly
    spread, and start at multiples of 8, so that the network sees each pixel at the same phase.
    The cheapest are those with the fewest pixels computed, the attention over each tile counted with
    ``limits.attention_px``; of equally cheap ones the fewest, and of these the squarest.

    Raises:
        ContractError: for an empty picture or a negative overlap.
    """
    _check_request(height, width, overlap_px)
    padded = (max(round_up(height), limits.smallest[0]), max(round_up(width), limits.smallest[1]))
    cap = (padded[0], padded[1]) if limits.largest is None else limits.largest
    if padded[0] <= cap[0] and padded[1] <= cap[1] and padded[0] * padded[1] <= limits.area_px:
        return TilePlan(padded=padded, tile=padded, tops=(0,), lefts=(0,))
    rows, columns = (
        tuple(_axes(size, least, min(size, most), overlap_px))
        for size, least, most in zip(padded, limits.smallest, cap, strict=True)
    )
    fitting = (pair for pair in itertools.product(rows, columns) if pair[0].tile * pair[1].tile <= limits.area_px)
    return _plan(padded, *min(fitting, key=lambda pair: _cost(*pair, limits.attention_px)))


@lru_cache(maxsize=256)
def plan_fixed_tiles(
    height: int, width: int, tile: tuple[int, int], limits: TileLimits, *, overlap_px: int = DEFAULT_OVERLAP_PX
) -> TilePlan:
    """Tiles of the size ``tile``, cut down to the picture's where that is smaller.

    Raises:
        ContractError: for an empty picture, a negative overlap or one that leaves no step from tile to tile, and
            for a size of tiles that is not within ``limits``.
    """
    check_tile_size(*tile, limits)
    _check_request(height, width, overlap_px)
    overlap = round_up(overlap_px)
    if min(tile) - overlap < SIZE_MULTIPLE:
        raise ContractError(f"tiles of {tile[0]}×{tile[1]} px cannot overlap by {overlap} px: ask for less overlap")
    padded = (max(round_up(height), limits.smallest[0]), max(round_up(width), limits.smallest[1]))
    axes = (_cut(size, min(side, size), overlap) for size, side in zip(padded, tile, strict=True))
    return _plan(padded, *axes)


class _Axis(NamedTuple):
    """The tiles along one axis: their size, how many, and by how much less they overlap than was asked."""

    tile: int
    tiles: int
    missing_px: int = 0


def _check_request(height: int, width: int, overlap_px: int) -> None:
    if height < 1 or width < 1 or overlap_px < 0:
        raise ContractError(f"cannot plan tiles for {height}×{width} px with an overlap of {overlap_px} px")


def _axes(size: int, smallest: int, largest: int, overlap_px: int) -> Iterator[_Axis]:
    """Every way to cut one axis into tiles from ``smallest`` to ``largest``, as few and as small as those can be."""
    most = largest
    while most >= smallest:
        axis = _axis(size, most, smallest, overlap_px)
        yield axis
        most = axis.tile - SIZE_MULTIPLE


def _axis(size: int, largest: int, smallest: int, overlap_px: int) -> _Axis:
    """The fewest tiles of at most ``largest`` along one axis, as small as they can be."""
    if size <= largest:
        return _Axis(size, 1)
    wanted = round_up(overlap_px)
    overlap = min(wanted, largest // 2 // SIZE_MULTIPLE * SIZE_MULTIPLE)
    count = _cut(size, largest, overlap).tiles
    tile = max(round_up(math.ceil((size + (count - 1) * overlap) / count)), smallest)
    return _cut(size, tile, overlap)._replace(missing_px=wanted - overlap)


def _cut(size: int, tile: int, overlap: int) -> _Axis:
    """The fewest tiles of one size that overlap by at least ``overlap``."""
    return _Axis(tile, 1 if size == tile else math.ceil((size - overlap) / (tile - overlap)))


def _plan(padded: tuple[int, int], rows: _Axis, columns: _Axis) -> TilePlan:
    tops, lefts = _starts(padded[0], rows), _starts(padded[1], columns)
    return TilePlan(padded=padded, tile=(rows.tile, columns.tile), tops=tops, lefts=lefts)


def _starts(size: int, axis: _Axis) -> tuple[int, ...]:
    """First pixels of the tiles along one axis, evenly spread on the grid of 8."""
    steps = (size - axis.tile) // SIZE_MULTIPLE
    return tuple(SIZE_MULTIPLE * (index * steps // max(axis.tiles - 1, 1)) for index in range(axis.tiles))


def _cost(rows: _Axis, columns: _Axis, attention_px: int | None) -> tuple[int, float, int, int]:
    """What to keep low: first overlap that is missing, then computation, then the number of tiles and their length."""
    area, count = rows.tile * columns.tile, rows.tiles * columns.tiles
    attention = 0 if attention_px is None else area / attention_px
    missing_px = rows.missing_px + columns.missing_px
    return missing_px, count * area * (1 + attention), count, max(rows.tile, columns.tile)
