"""The image contract: what goes into a deployed graph and what comes out. Its only description.

A graph takes ``blurred`` and gives ``deblurred``, both N×H×W×3, sRGB, channels in the order R, G, B,
height and width multiples of 8:

- ``uint8``: 0 to 255. Scaling, clamping and rounding are in the graph.
- ``float32``: 0.0 to 1.0, clamped, not rounded. For pictures of more than 8 bits, and for parity.

Padding to multiples of 8 is outside the graph: right and bottom, by edge replication. So is the scaling of
16-bit pictures: 0 to 65535 becomes 0.0 to 1.0, and is rounded back.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from msan_runtime.errors import ContractError

__all__ = [
    "CONTRACT_VERSION",
    "FULL_SCALE",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "SIZE_MULTIPLE",
    "Io",
    "PictureArray",
    "check_picture",
    "pad_to",
    "pixels_from_tiles",
    "round_up",
    "tiles_from_pixels",
]

CONTRACT_VERSION = 1
INPUT_NAME = "blurred"
OUTPUT_NAME = "deblurred"
SIZE_MULTIPLE = 8

Io = Literal["uint8", "float32"]
PictureArray = npt.NDArray[np.uint8 | np.uint16 | np.float32]
"""Pixels of a picture or of tiles: of ``uint8``, unless a function says that it takes others too."""


FULL_SCALE: dict[np.dtype[Any], int] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}
"""The value that means white, of each type that a picture can have."""


def check_picture(picture: object) -> None:
    """Refuse what is not a picture: uint8, uint16 or float32 from 0 to 1, H×W×3, at least 1×1.

    Raises:
        ContractError: with the dtype and shape seen.
    """
    if not isinstance(picture, np.ndarray):
        raise ContractError(f"a picture must be a NumPy array, not {type(picture).__name__}")
    array: npt.NDArray[Any] = picture
    if array.dtype not in FULL_SCALE or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ContractError(
            "a picture must be uint8, uint16 or float32 of shape (height, width, 3), "
            f"not {array.dtype} of shape {array.shape}"
        )
    if array.dtype == np.float32:
        least, most = array.min(), array.max()
        if not (least >= 0 and most <= 1):  # so that NaN is refused, too
            raise ContractError(f"a float32 picture must be from 0 to 1, not from {least} to {most}: scale it")


def tiles_from_pixels(pixels: PictureArray, io: Io) -> PictureArray:
    """``pixels`` of any type of picture as what a graph of ``io`` takes; uint8 graphs take uint8 alone."""
    if io == "uint8" or pixels.dtype == np.float32:
        return pixels
    return np.divide(pixels, FULL_SCALE[pixels.dtype], dtype=np.float32)


def pixels_from_tiles(tiles: PictureArray, dtype: np.dtype[Any]) -> PictureArray:
    """What a graph gave as pixels of ``dtype``: scaled, and rounded half to even, where they differ."""
    if tiles.dtype == dtype:
        return tiles
    levels = tiles * np.float32(FULL_SCALE[dtype] / FULL_SCALE[tiles.dtype])
    np.rint(levels, out=levels)
    np.clip(levels, 0, FULL_SCALE[dtype], out=levels)
    return levels.astype(dtype)


def round_up(size_px: int, multiple: int = SIZE_MULTIPLE) -> int:
    """The least multiple of ``multiple`` that is at least ``size_px``."""
    return -(-size_px // multiple) * multiple


def pad_to(picture: PictureArray, height: int, width: int) -> PictureArray:
    """``picture`` (H×W×3) enlarged to height×width, right and bottom, by edge replication."""
    down, right = height - picture.shape[0], width - picture.shape[1]
    if down == right == 0:
        return picture
    return np.pad(picture, ((0, down), (0, right), (0, 0)), mode="edge")
