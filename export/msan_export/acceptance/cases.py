"""Pictures to compare on: the shipped samples or a folder's, and one for each size that an engine must take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msan_export.acceptance.verdict import Case
from msan_runtime.contract import PictureArray
from msan_runtime.errors import BundleError
from msan_runtime.image import find_pictures, read_picture
from msan_runtime.manifest import Profile

__all__ = ["CASE_SIDE_PX", "SAMPLES", "TILED_PX", "TILE_PX", "middle", "sample_cases", "shape_cases", "sized"]

CASE_SIDE_PX = 640
"""Pictures are compared on their middle part of at most this height and width."""

TILED_PX, TILE_PX = (520, 776), (256, 320)
"""Size of a picture, and of the tiles that it is cut into, so that tiles and their blending are compared too."""

SAMPLES = Path(__file__).parents[1] / "samples"


def sample_cases(folder: Path | None = None) -> list[Case]:
    """The pictures of ``folder``, or the shipped samples: a square, an odd-sized and a tall one.

    Raises:
        BundleError: if the folder holds no picture.
        PictureError: for one that cannot be decoded.
    """
    where = SAMPLES if folder is None else folder
    if not where.is_dir():
        raise BundleError(f"no folder of pictures at {where}")
    files = find_pictures(where)
    if not files:
        raise BundleError(f"no JPEG, PNG, WebP or TIFF picture in {where} to verify on")
    return [_case(file) for file in files]


def shape_cases(profile: Profile, source: PictureArray) -> list[Case]:
    """A picture of the smallest, the typical and the largest size of ``profile``, made of ``source`` mirrored.

    Sizes that are equal come once.
    """
    named = {profile.max[1:]: "max", profile.opt[1:]: "opt", profile.min[1:]: "min"}
    return [
        Case(name=f"{name} {height}×{width}", picture=sized(source, height, width))
        for (height, width), name in sorted(named.items())
    ]


def sized(picture: PictureArray, height: int, width: int) -> PictureArray:
    """The middle of ``picture``, which is continued by its mirror image where it is smaller than (height, width)."""
    whole = np.pad(picture, [*_missing(picture.shape, (height, width)), (0, 0)], mode="symmetric")
    return middle(whole, height, width)


def middle(picture: PictureArray, height: int, width: int) -> PictureArray:
    """The middle (height, width) of ``picture``, which is no smaller; contiguous."""
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def _missing(have: Sequence[int], wanted: tuple[int, int]) -> list[tuple[int, int]]:
    """What to add before and after each side."""
    short = [max(0, side - had) for side, had in zip(wanted, have, strict=False)]
    return [(length // 2, length - length // 2) for length in short]


def _case(file: Path) -> Case:
    picture = read_picture(file).pixels
    height, width = (min(side, CASE_SIDE_PX) for side in picture.shape[:2])
    return Case(name=f"{file.name} {height}×{width}", picture=middle(picture, height, width))
