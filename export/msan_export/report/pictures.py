"""Pictures for a page: cut to what matters, as data URIs without loss, and maps of their differences."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from msan_runtime.contract import PictureArray

__all__ = [
    "Crop",
    "Levels",
    "colours",
    "crop_around",
    "data_uri",
    "differences",
    "fitting_side",
    "heat_map",
    "pooled",
    "scale_top",
]

SIDES_PX = (480, 400, 336, 280, 240, 200, 168, 144, 120, 96, 80, 64)
"""Sides that pictures are cut to; each is about 1.4 times the bytes of the next."""

LEAST_SCALE_LEVELS = 4
"""A scale ends no lower, so that a difference of one level never looks like a large one."""

BLOCK_PX = 16

Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of a picture, in pixels, and the pixel in it that it was cut around, in pixels of the part."""

    top: int
    left: int
    height: int
    width: int
    worst: tuple[int, int]

    def of(self, picture: PictureArray) -> PictureArray:
        """That part of ``picture``."""
        return np.ascontiguousarray(picture[self.top : self.top + self.height, self.left : self.left + self.width])


def differences(expected: PictureArray, given: PictureArray) -> Levels:
    """The largest difference of the three channels of each pixel, in levels of 255."""
    return np.abs(expected.astype(np.int16) - given).max(axis=2).astype(np.uint8)


def crop_around(levels: Levels, side_px: int) -> Crop:
    """At most ``side_px`` a side around the pixel that differs most; around the middle where none does."""
    rows, columns = levels.shape
    height, width = min(side_px, rows), min(side_px, columns)
    row, column = _worst(levels) if levels.any() else (rows // 2, columns // 2)
    top = min(max(row - height // 2, 0), rows - height)
    left = min(max(column - width // 2, 0), columns - width)
    return Crop(top=top, left=left, height=height, width=width, worst=(row - top, column - left))


def _worst(levels: Levels) -> tuple[int, int]:
    """The pixel that differs most; of several, one whose neighbourhood does."""
    rows, columns = levels.shape
    padded = np.pad(levels.astype(np.float32), [(0, -length % BLOCK_PX) for length in levels.shape])
    blocks = padded.reshape(padded.shape[0] // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).mean(axis=(1, 3))
    around = blocks.repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1)[:rows, :columns]
    return divmod(int((levels + around / 256).argmax()), columns)


def fitting_side(pictures: Sequence[PictureArray], levels: Levels, *, most_px: int, most_bytes: int) -> int:
    """The largest side up to ``most_px`` to which ``pictures`` are cut so that they take about ``most_bytes`` in all.

    Estimated on a small part of them, and never less than the least of ``SIDES_PX``.
    """
    probe = crop_around(levels, min(most_px, 128))
    spent = sum(len(data_uri(probe.of(picture))) for picture in pictures)
    bytes_per_px = spent / (probe.height * probe.width)
    for side in (most_px, *(side for side in SIDES_PX if side < most_px)):
        height, width = (min(side, length) for length in levels.shape)
        if height * width * bytes_per_px <= most_bytes:
            return side
    return min(most_px, SIDES_PX[-1])


def data_uri(pixels: PictureArray) -> str:
    """``pixels`` (uint8, H×W×3) as a lossless WebP picture in a URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=50, method=3)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def pooled(levels: Levels, side_px: int) -> tuple[Levels, int]:
    """``levels`` shrunk to at most ``side_px`` a side, each pixel the largest of its square; and the square's side."""
    factor = math.ceil(max(levels.shape) / side_px)
    padded = np.pad(levels, [(0, -length % factor) for length in levels.shape])
    rows, columns = (length // factor for length in padded.shape)
    return padded.reshape(rows, factor, columns, factor).max(axis=(1, 3)), factor


def scale_top(levels: Levels) -> int:
    """The difference at which the scale of a heat map ends: 4, 8, 16 … 255 levels, the first that holds all of them."""
    most = int(levels.max(initial=0))
    return min(255, max(LEAST_SCALE_LEVELS, 1 << (most - 1).bit_length() if most else 0))


def heat_map(levels: Levels, top: int) -> PictureArray:
    """``levels`` in colours: black for none, from violet over red and orange to light yellow for ``top``."""
    return colours()[np.minimum(levels.astype(np.int32) * 255 // top, 255)]


def colours(count: int = 256) -> npt.NDArray[np.uint8]:
    """Black, then colours of evenly growing lightness, ``count`` in all, in sRGB.

    Lightness and hue are lines in Oklab (Björn Ottosson, https://bottosson.github.io/posts/oklab/), in which equal
    steps look equal.
    """
    share = np.linspace(0.0, 1.0, count)
    hue = np.radians(290 + 175 * share)
    chroma = 0.17 * np.sin(np.pi * (0.15 + 0.85 * share)) ** 0.8
    # The first step is a large one: a difference of one level is to be seen.
    lightness = np.where(share > 0, 0.36 + 0.62 * share, 0.0)
    chroma = np.where(share > 0, chroma, 0.0)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    return (_srgb(_linear_from_oklab(lab)) * 255).round().astype(np.uint8)


def _linear_from_oklab(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cones = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return (lab @ cones.T) ** 3 @ linear.T


def _srgb(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    clipped = linear.clip(0, 1)
    return np.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped ** (1 / 2.4) - 0.055)
