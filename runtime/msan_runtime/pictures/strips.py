"""Pixels between Pillow and NumPy strip by strip, so that a large picture is not held once more on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from msan_runtime.contract import PictureArray
from msan_runtime.pictures.picture import Picture
from msan_runtime.pictures.transparency import StripRestorer

__all__ = ["as_stored", "as_upright", "image_from", "pixels_from", "strips"]

STRIP_PIXELS = 1_000_000

Conversion = Callable[[Image.Image], Image.Image]

FILE_VIEWS: dict[int, Callable[[PictureArray], PictureArray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: np.rot90(upright.swapaxes(0, 1), 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""For each EXIF orientation, the view of an upright array whose rows are those of the file."""

INVERSE = {6: 8, 8: 6}
"""Where turning back is another turn than turning; the others undo themselves."""


def as_upright(stored: PictureArray, orientation: int) -> PictureArray:
    """A view of an array in the order of a file of this orientation, turned upright."""
    return FILE_VIEWS[INVERSE.get(orientation, orientation)](stored)


def as_stored(upright: PictureArray, orientation: int) -> PictureArray:
    """A view of ``upright`` in the order in which a file of this orientation stores it."""
    return FILE_VIEWS[orientation](upright)


def strips(height: int, width: int) -> Iterator[slice]:
    """Rows, some at a time, from top to bottom."""
    rows = max(1, STRIP_PIXELS // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def pixels_from(
    image: Image.Image, *, orientation: int, convert: Conversion, alpha: bool
) -> tuple[PictureArray, PictureArray | None]:
    """Colours (uint8 H×W×3) and alpha (uint8 H×W) of an image, turned upright.

    Args:
        image: any; it is decoded now.
        orientation: how its pixels are turned, as EXIF counts.
        convert: makes a strip of it RGB, or RGBA if ``alpha``.
        alpha: whether there is one.
    """
    image.load()
    height, width = image.height, image.width
    shape = (width, height) if orientation >= 5 else (height, width)
    pixels = np.empty((*shape, 3), np.uint8)
    opacity = np.empty(shape, np.uint8) if alpha else None
    for rows in strips(height, width):
        strip = np.asarray(convert(image.crop((0, rows.start, width, rows.stop))))
        as_stored(pixels, orientation)[rows] = strip[:, :, :3]
        if opacity is not None:
            as_stored(opacity, orientation)[rows] = strip[:, :, 3]
    return pixels, opacity


def image_from(picture: Picture) -> Image.Image:
    """A picture of 8 bits as Pillow's image: L, LA, RGB or RGBA, hidden colours put back."""
    height, width = picture.pixels.shape[:2]
    mode = ("L" if picture.grey else "RGB") + ("A" if picture.alpha is not None else "")
    image = Image.new(mode, (width, height), None)
    restorer = StripRestorer(picture)
    for rows in strips(height, width):
        strip = Image.fromarray(np.ascontiguousarray(restorer.colours(rows)))
        if picture.grey:
            strip = strip.convert("L")
        if picture.alpha is not None:
            strip.putalpha(Image.fromarray(np.ascontiguousarray(picture.alpha[rows])))
        image.paste(strip, (0, rows.start))
    return image
