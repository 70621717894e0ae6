"""Blending: weights that fade overlapping tiles into each other, and the band they are summed in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from msan_runtime.contract import FULL_SCALE, PictureArray
from msan_runtime.tiles import TilePlan

__all__ = ["TileBlender", "axis_weights"]

Weights = npt.NDArray[np.float32]


def axis_weights(starts: tuple[int, ...], tile: int) -> list[Weights]:
    """Weights of each tile along one axis: float32, ``tile`` long, positive.

    They ramp linearly where tiles overlap; at every pixel the weights of all tiles sum to one.
    """
    size = starts[-1] + tile
    raw = [_ramps(starts, index, tile) for index in range(len(starts))]
    total = np.zeros(size)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + tile] += weights
    pairs = zip(starts, raw, strict=True)
    return [(weights / total[start : start + tile]).astype(np.float32) for start, weights in pairs]


def _ramps(starts: tuple[int, ...], index: int, tile: int) -> npt.NDArray[np.float64]:
    """One tile's weights before normalisation: up over the overlap with the tile before, down over the one after."""
    weights = np.ones(tile)
    before = starts[index - 1] + tile - starts[index] if index > 0 else 0
    after = starts[index] + tile - starts[index + 1] if index + 1 < len(starts) else 0
    if before > 0:
        weights[:before] *= (np.arange(before) + 0.5) / before
    if after > 0:
        weights[tile - after :] *= (np.arange(after)[::-1] + 0.5) / after
    return weights


class TileBlender:
    """Sums weighted tiles into a picture, one row of tiles at a time.

    Beside the result it holds a float32 band as high as a tile, so its memory does not grow with
    the picture's height.

    Attributes:
        picture: height×width×3 of ``dtype``; whole when the last tile was added.
    """

    def __init__(self, plan: TilePlan, height: int, width: int, dtype: npt.DTypeLike = np.uint8) -> None:
        self.plan = plan
        self.picture: PictureArray = np.empty((height, width, 3), dtype)
        self._full_scale = FULL_SCALE[self.picture.dtype]
        self._row_weights = axis_weights(plan.tops, plan.tile[0])
        self._column_weights = axis_weights(plan.lefts, plan.tile[1])
        self._band = np.zeros((plan.tile[0], plan.padded[1], 3), np.float32)

    def add(self, row: int, column: int, tile: PictureArray) -> None:
        """Add the tile at (row, column) of the plan; tiles must come row by row, left to right.

        A tile may be of another type of picture than the result: it is scaled.
        """
        left = self.plan.lefts[column]
        gain = np.float32(self._full_scale / FULL_SCALE[tile.dtype])
        weights = gain * self._row_weights[row][:, None, None] * self._column_weights[column][None, :, None]
        self._band[:, left : left + self.plan.tile[1]] += tile * weights
        if column == len(self.plan.lefts) - 1:
            self._finish_row(row)

    def _finish_row(self, row: int) -> None:
        """Give out the rows that no later tile touches; keep the overlap for the next row of tiles."""
        tops = self.plan.tops
        done = tops[row + 1] - tops[row] if row + 1 < len(tops) else self.plan.tile[0]
        height, width = self.picture.shape[:2]
        rows = max(0, min(done, height - tops[row]))
        levels = self._band[:rows, :width]
        if self.picture.dtype != np.float32:
            np.rint(levels, out=levels)
        np.clip(levels, 0, self._full_scale, out=levels)
        self.picture[tops[row] : tops[row] + rows] = levels
        kept = self._band[done:].copy()
        self._band[: len(kept)] = kept
        self._band[len(kept) :] = 0
