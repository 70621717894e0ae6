"""Colours under transparency: taken out of the network's sight, and put back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from msan_runtime.contract import PictureArray
from msan_runtime.pictures.picture import Picture

__all__ = ["StripRestorer", "fill_hidden", "restored"]

Mask = npt.NDArray[np.bool_]

ROWS_AT_ONCE = 128
"""Even: each strip of a level is a strip of the next."""


def fill_hidden(pixels: PictureArray, alpha: PictureArray) -> PictureArray | None:
    """Replace in place the colours that nobody sees, so that they do not bleed into those that one does.

    Where ``alpha`` is 0 each pixel becomes the mean of the visible ones in the smallest of the
    2×2, 4×4, 8×8, ... blocks around it that has any.

    Returns:
        N×3, the colours that were there, row by row; ``None`` if nothing is hidden. In a picture
        without any visible pixel they are left as they are.
    """
    hidden = alpha == 0
    if not hidden.any():
        return None
    colours = pixels[hidden]
    if not hidden.all():
        _fill(pixels, hidden)
    return colours


def restored(picture: Picture) -> PictureArray:
    """The pixels with the hidden colours put back; not a copy if none are hidden."""
    if picture.alpha is None or picture.hidden is None:
        return picture.pixels
    pixels = picture.pixels.copy()
    pixels[picture.alpha == 0] = picture.hidden
    return pixels


class StripRestorer:
    """Gives a picture's pixels strip by strip, the hidden colours put back."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._done = 0

    def colours(self, rows: slice) -> PictureArray:
        """The pixels of these rows. Ask for all rows in order: the hidden colours are counted off."""
        picture = self._picture
        strip = picture.pixels[rows]
        if picture.alpha is None or picture.hidden is None:
            return strip
        hidden = picture.alpha[rows] == 0
        first, self._done = self._done, self._done + int(np.count_nonzero(hidden))
        strip = strip.copy()
        strip[hidden] = picture.hidden[first : self._done]
        return strip


def _fill(pixels: PictureArray, hidden: Mask) -> None:
    """Fill the hidden pixels from a picture of half the size, which is filled in the same way first."""
    coarse, empty = _halved(pixels, hidden)
    if empty.any():
        _fill(coarse, empty)
    for top in range(0, pixels.shape[0], ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        mask = hidden[rows]
        if mask.any():
            doubled = coarse[top // 2 : (top + ROWS_AT_ONCE) // 2].repeat(2, axis=0).repeat(2, axis=1)
            pixels[rows][mask] = doubled[: mask.shape[0], : mask.shape[1]][mask]


def _halved(pixels: PictureArray, hidden: Mask) -> tuple[PictureArray, Mask]:
    """Rounded means of the visible pixels of each 2×2 block, and which blocks have none."""
    height, width = (-(-size // 2) for size in hidden.shape)
    means, empty = np.empty((height, width, 3), pixels.dtype), np.empty((height, width), np.bool_)
    wide = np.uint16 if pixels.dtype == np.uint8 else np.uint32
    for top in range(0, hidden.shape[0], ROWS_AT_ONCE):
        rows, half = slice(top, top + ROWS_AT_ONCE), slice(top // 2, (top + ROWS_AT_ONCE) // 2)
        visible = (~hidden[rows])[:, :, None].view(np.uint8)
        weights = _sums_of_blocks(visible, wide)
        sums = _sums_of_blocks(pixels[rows] * visible, wide)
        if weights.min() == 4:
            means[half] = (sums + 2) >> 2
        else:
            means[half] = (sums + weights // 2) // np.maximum(weights, 1)
        empty[half] = weights[:, :, 0] == 0
    return means, empty


def _sums_of_blocks(values: PictureArray, wide: type[np.uint16 | np.uint32]) -> npt.NDArray[np.uint16 | np.uint32]:
    """Sums over 2×2 blocks; an odd last row or column counts as a block with nothing beside it."""
    odd = (values.shape[0] % 2, values.shape[1] % 2)
    even = np.pad(values, ((0, odd[0]), (0, odd[1]), (0, 0))) if any(odd) else values
    pairs = np.add(even[::2], even[1::2], dtype=wide)
    return pairs[:, ::2] + pairs[:, 1::2]
