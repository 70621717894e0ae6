"""Tiles: a plan of equal, overlapping regions that cover a picture. Integers only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import SIZE_MULTIPLE, round_up
from msan_runtime.errors import ContractError

__all__ = ["DEFAULT_OVERLAP_PX", "Region", "TilePlan", "plan_tiles"]

DEFAULT_OVERLAP_PX = 64


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
    """Equal tiles that cover a padded picture.

    Attributes:
        padded: (height, width) that the picture is padded to before cutting, multiples of 8.
        tile: (height, width) of every tile, multiples of 8.
        tops, lefts: first rows and columns of the tiles, ascending; a tile for every pair.

    Raises:
        ContractError: if the tiles do not cover the padded picture exactly.
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


def plan_tiles(height: int, width: int, limits: TileLimits, *, overlap_px: int = DEFAULT_OVERLAP_PX) -> TilePlan:
    """One tile if the whole picture fits ``limits``, else as few as cover it with the squarest tile allowed.

    Tiles overlap by at least ``overlap_px`` (less where tiles are smaller than twice that), evenly
    spread, and start at multiples of 8, so that the network sees each pixel at the same phase.

    Raises:
        ContractError: for an empty picture or a negative overlap.
    """
    if height < 1 or width < 1 or overlap_px < 0:
        raise ContractError(f"cannot plan tiles for {height}×{width} px with an overlap of {overlap_px} px")
    padded = (max(round_up(height), limits.smallest[0]), max(round_up(width), limits.smallest[1]))
    largest = _largest_tile(padded, limits)
    rows = _plan_axis(padded[0], largest[0], limits.smallest[0], overlap_px)
    columns = _plan_axis(padded[1], largest[1], limits.smallest[1], overlap_px)
    return TilePlan(padded=padded, tile=(rows[0], columns[0]), tops=rows[1], lefts=columns[1])


def _largest_tile(padded: tuple[int, int], limits: TileLimits) -> tuple[int, int]:
    """The whole picture if it fits, else the squarest tile of the allowed area."""
    cap = limits.largest or padded
    height, width = min(padded[0], cap[0]), min(padded[1], cap[1])
    if height * width <= limits.area_px:
        return height, width
    side = math.isqrt(limits.area_px)
    height = min(height, max(_round_down(side), limits.smallest[0]))
    width = min(width, max(_round_down(limits.area_px // height), limits.smallest[1]))
    return min(padded[0], cap[0], _round_down(limits.area_px // width)), width


def _plan_axis(size: int, largest: int, smallest: int, overlap: int) -> tuple[int, tuple[int, ...]]:
    """Tile size and starts along one axis."""
    if size <= largest:
        return size, (0,)
    overlap = min(round_up(overlap), _round_down(largest // 2, 0))
    count = math.ceil((size - overlap) / (largest - overlap))
    tile = max(round_up(math.ceil((size + (count - 1) * overlap) / count)), smallest)
    steps = (size - tile) // SIZE_MULTIPLE
    return tile, tuple(SIZE_MULTIPLE * (index * steps // (count - 1)) for index in range(count))


def _round_down(size: int, least: int = SIZE_MULTIPLE) -> int:
    return max(size // SIZE_MULTIPLE * SIZE_MULTIPLE, least)
