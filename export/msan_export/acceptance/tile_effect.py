"""What tiles do to a network of another maker: parts that look at the whole picture see a tile instead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msan_export.acceptance.cases import TILE_PX, TILED_PX, sized
from msan_export.acceptance.figures import differences
from msan_export.acceptance.reference import Reference, padded
from msan_export.acceptance.thresholds import Threshold
from msan_export.acceptance.verdict import Case
from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import OUTPUT_NAME, PictureArray

__all__ = ["TileEffect", "tile_effect"]


@dataclass(frozen=True, kw_only=True)
class TileEffect:
    """How far a picture in tiles is from the same picture whole: largest difference in levels of 255, and PSNR."""

    worst: float
    psnr_db: float

    def __str__(self) -> str:
        (height, width), (tile_height, tile_width) = TILED_PX, TILE_PX
        apart = "not at all" if self.worst == 0 else f"by up to {self.worst:g} of 255 levels, {self.psnr_db:.1f} dB"
        sample = f"a sample of {height}×{width} px in tiles of {tile_height}×{tile_width} px"
        return f"{sample} differs from the same sample whole {apart}"

    def within(self, bound: Threshold) -> bool:
        """Whether the two may be taken for the same."""
        return bound.allows(self.worst, self.psnr_db)


def tile_effect(reference: Reference, picture: PictureArray) -> TileEffect:
    """``picture``, brought to one size, in tiles as the runtime cuts and blends them, beside it whole; in PyTorch."""
    height, width = TILED_PX
    case = Case(name="tiles", picture=sized(picture, height, width), tile=TILE_PX)
    tiled = reference.tiled(case, TileLimits(area_px=math.prod(TILE_PX)), keep=False)
    whole = reference.outputs(padded(case.picture))[OUTPUT_NAME][0, :height, :width]
    worst, psnr_db = differences(whole, tiled, 255.0)
    return TileEffect(worst=worst, psnr_db=psnr_db)
