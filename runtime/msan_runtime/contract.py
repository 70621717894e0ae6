"""The image contract: what goes into a deployed graph and what comes out. Its only description.

A graph takes ``blurred`` and gives ``deblurred``, both N×H×W×3, sRGB, channels in the order R, G, B,
height and width multiples of 8:

- ``uint8``: 0 to 255. Scaling, clamping and rounding are in the graph.
- ``float32``: 0.0 to 1.0, clamped, not rounded. For pictures of more than 8 bits, and for parity.

Padding to multiples of 8 is outside the graph: right and bottom, by edge replication.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from msan_runtime.errors import ContractError

__all__ = [
    "CONTRACT_VERSION",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "SIZE_MULTIPLE",
    "Io",
    "PictureArray",
    "check_picture",
    "pad_to",
    "round_up",
]

CONTRACT_VERSION = 1
INPUT_NAME = "blurred"
OUTPUT_NAME = "deblurred"
SIZE_MULTIPLE = 8

Io = Literal["uint8", "float32"]
PictureArray = npt.NDArray[np.uint8]


def check_picture(picture: object) -> None:
    """Refuse what is not a picture: uint8, H×W×3, at least 1×1.

    Raises:
        ContractError: with the dtype and shape seen.
    """
    if not isinstance(picture, np.ndarray):
        raise ContractError(f"a picture must be a NumPy array, not {type(picture).__name__}")
    array: npt.NDArray[Any] = picture
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ContractError(
            f"a picture must be uint8 of shape (height, width, 3), not {array.dtype} of shape {array.shape}"
        )


def round_up(size_px: int, multiple: int = SIZE_MULTIPLE) -> int:
    """The least multiple of ``multiple`` that is at least ``size_px``."""
    return -(-size_px // multiple) * multiple


def pad_to(picture: PictureArray, height: int, width: int) -> PictureArray:
    """``picture`` (H×W×3) enlarged to height×width, right and bottom, by edge replication."""
    down, right = height - picture.shape[0], width - picture.shape[1]
    if down == right == 0:
        return picture
    return np.pad(picture, ((0, down), (0, right), (0, 0)), mode="edge")
