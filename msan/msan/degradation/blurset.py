"""The fixed blur set: a picture folder blurred always in the same way, to measure networks on.

Version 1: pictures in the order of their names; picture i of n is seen along a random camera path
whose length grows evenly from 2 px for the first to 18 px for the last of a seeded shuffle; noise
of one grey level; a border of 20 px is cut off, so that nothing outside the picture is seen;
rounded to 8 bits. Trajectory, order and noise follow from the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msan.data.readers import DatasetError
from msan.degradation.blur import BlurSpec, blur_along
from msan.degradation.trajectories import random_trajectories
from msan_runtime.contract import PictureArray
from msan_runtime.image import read_picture

__all__ = ["BLUR_SET_VERSION", "BlurredPair", "fixed_blur_set"]

BLUR_SET_VERSION = 1
SEED = 24101414
LENGTH_PX = (2.0, 18.0)
ROLL_PX = 2.0
WANDER = 2.0
INSTANTS = 25
NOISE_LEVELS = 1.0
MARGIN_PX = 20


@dataclass(frozen=True, kw_only=True)
class BlurredPair:
    """A sharp picture, its blurred version (uint8 H×W×3 both), and the length of the camera's path."""

    name: str
    blurred: PictureArray
    sharp: PictureArray
    length_px: float


def fixed_blur_set(files: Sequence[Path]) -> Iterator[BlurredPair]:
    """The blur set over ``files``: the same pairs whenever the pictures are the same.

    Raises:
        DatasetError: for a picture under 64 px.
        PictureError: for a file that cannot be decoded.
    """
    ordered = sorted(files, key=lambda file: (file.name, file))
    order = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(SEED))
    lengths = torch.linspace(*LENGTH_PX, len(ordered))
    for index, file in enumerate(ordered):
        generator = torch.Generator().manual_seed(SEED + 1 + index)
        yield _pair(file, float(lengths[order[index]]), generator)


def _pair(file: Path, length_px: float, generator: torch.Generator) -> BlurredPair:
    pixels = read_picture(file).pixels
    if min(pixels.shape[:2]) < 2 * MARGIN_PX + 24:
        raise DatasetError(f"{file} is {pixels.shape[0]}×{pixels.shape[1]} px; the blur set needs 64 px a side")
    sharp = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    spec = BlurSpec(
        length_px=(length_px, length_px),
        roll_px=ROLL_PX,
        zoom_px=0.0,
        wander=WANDER,
        sharp_share=0.0,
        instants=INSTANTS,
    )
    blurred = blur_along(sharp, random_trajectories(1, spec, generator), margin_px=MARGIN_PX)
    noisy = blurred + torch.randn(blurred.shape, generator=generator) * (NOISE_LEVELS / 255)
    inner = sharp[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    return BlurredPair(name=file.name, blurred=_levels(noisy), sharp=_levels(inner), length_px=length_px)


def _levels(picture: Tensor) -> PictureArray:
    levels = (picture[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
