"""A labelled before/after picture: blurred on the left, deblurred on the right."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from msan_runtime.contract import PictureArray

__all__ = ["side_by_side"]

GAP_PX = 4


def side_by_side(before: PictureArray, after: PictureArray) -> PictureArray:
    """Both pictures (uint8 or uint16, H×W×3, equal shapes) beside each other under a strip with their labels.

    Returns:
        uint8: it is to be looked at.
    """
    height, width = before.shape[:2]
    font_px = int(np.clip(width / 16, 8, 40))
    strip_px = 2 * font_px
    sheet = Image.new("RGB", (2 * width + GAP_PX, height + strip_px), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(font_px)
    for left, label, pixels in ((0, "before", before), (width + GAP_PX, "after", after)):
        sheet.paste(Image.fromarray(_eight_bits(pixels)), (left, strip_px))
        draw.text((left + width / 2, strip_px / 2), label, fill="black", font=font, anchor="mm")
    return np.array(sheet)


def _eight_bits(pixels: PictureArray) -> PictureArray:
    if pixels.dtype != np.uint16:
        return pixels
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
