"""A picture of an evaluation: where the method gained most and least, blurred, deblurred and sharp side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from msan.evaluation.evaluate import Metric, PictureScore, Scores
from msan.evaluation.sets import MeasuredPair
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MsanError
from msan_runtime.image import Picture, write_picture

__all__ = ["Extremes", "SheetRow", "draw_sheet", "save_sheet"]

CELL_PX = 256
GAP_PX = 6
MARGIN_PX = 24
LINE_PX = 26
FONT_PX = 17
TITLE_PX = 26
STRIDE_PX = 8
"""Crops are looked for at every such pixel."""

HALF_PX = 3 * CELL_PX + 2 * GAP_PX
ROW_PX = LINE_PX + CELL_PX + LINE_PX + MARGIN_PX // 2
WIDTH_PX = 2 * HALF_PX + 3 * MARGIN_PX

# Plain letters: Pillow's own font has no multiplication sign and no ellipsis.
NAMES: Mapping[Metric, str] = {
    "psnr_db": "PSNR",
    "ssim_matlab3d": "SSIM (matlab3d)",
    "ssim_skimage": "SSIM (skimage)",
    "aligned_psnr_db": "aligned PSNR",
    "aligned_ssim": "SSIM",
}

INK, FAINT, PAPER = "black", "#606060", "white"


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One picture's crops, uint8 of one shape, at (top, left), and the figures of the whole picture."""

    score: PictureScore
    corner: tuple[int, int]
    crops: tuple[PictureArray, PictureArray, PictureArray]


class Extremes:
    """The pictures of one set with the largest and the smallest gain; only their crops are kept.

    Attributes:
        name: of the set.
        count: rows at most of each kind.
    """

    def __init__(self, name: str, count: int) -> None:
        if count < 1:
            raise MsanError(f"a sheet needs at least one picture of each kind, not {count}")
        self.name = name
        self.count = count
        self._rows: list[SheetRow] = []

    def add(self, score: PictureScore, pair: MeasuredPair, deblurred: PictureArray) -> None:
        """Keep a picture if it is among the extremes so far."""
        corner = _corner(pair.blurred, pair.sharp)
        pictures = (pair.blurred, deblurred, pair.sharp)
        first, second, third = (_crop(picture, corner) for picture in pictures)
        self._rows.append(SheetRow(score=score, corner=corner, crops=(first, second, third)))
        self._rows.sort(key=lambda row: row.score.quoted_gain_db, reverse=True)
        if len(self._rows) > 2 * self.count:
            del self._rows[self.count]

    @property
    def largest(self) -> list[SheetRow]:
        """Rows of the largest gain, largest first. No picture is here and in ``smallest``."""
        return self._rows[: min(self.count, -(-len(self._rows) // 2))]

    @property
    def smallest(self) -> list[SheetRow]:
        """Rows of the smallest gain, smallest first."""
        return self._rows[len(self.largest) :][::-1]


def draw_sheet(sections: Sequence[Extremes], label: str) -> PictureArray:
    """The sheet of one or more sets, uint8 H×W×3, as wide as ``WIDTH_PX``; ``label`` names the method."""
    sections = [section for section in sections if section.largest]
    heights = [_section_px(section) for section in sections]
    sheet = Image.new("RGB", (WIDTH_PX, MARGIN_PX + sum(heights)), PAPER)
    top = MARGIN_PX
    for section, height in zip(sections, heights, strict=True):
        _draw_section(sheet, section, label, top)
        top += height
    return np.array(sheet)


def save_sheet(path: Path, sections: Sequence[Extremes], label: str) -> None:
    """Write the sheet, atomically; the format follows from the suffix.

    Raises:
        PictureError: if it cannot be written there.
    """
    pixels = draw_sheet(sections, label)
    write_picture(path, Picture(pixels=pixels, alpha=None, grey=False, icc=None, exif=None))


def _corner(blurred: PictureArray, sharp: PictureArray) -> tuple[int, int]:
    """Where the input differs most from the sharp picture: there is something to deblur, whatever the method."""
    error = np.square(blurred.astype(np.float32) - sharp).sum(2, dtype=np.float64)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = (min(CELL_PX, side) for side in error.shape)
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    coarse = boxes[::STRIDE_PX, ::STRIDE_PX]
    row, column = divmod(int(coarse.argmax()), coarse.shape[1])
    return row * STRIDE_PX, column * STRIDE_PX


def _crop(picture: PictureArray, corner: tuple[int, int]) -> PictureArray:
    top, left = corner
    return picture[top : top + CELL_PX, left : left + CELL_PX].copy()


def _section_px(section: Extremes) -> int:
    rows = max(len(section.largest), len(section.smallest))
    return TITLE_PX + LINE_PX + 2 * LINE_PX + rows * ROW_PX + MARGIN_PX


def _draw_section(sheet: Image.Image, section: Extremes, label: str, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, top), f"{section.name}: {label}", fill=INK, font=_font(TITLE_PX))
    about = f"{_about(section)} of whole pictures; crops of at most {CELL_PX} px where the input is furthest from sharp"
    draw.text((MARGIN_PX, top + TITLE_PX + 6), about, fill=FAINT, font=_font(FONT_PX))
    halves = (("largest gain", section.largest), ("smallest gain", section.smallest))
    for index, (title, rows) in enumerate(halves):
        left = MARGIN_PX + index * (HALF_PX + MARGIN_PX)
        if rows:
            _draw_heads(draw, title, left, top + TITLE_PX + LINE_PX + LINE_PX // 2)
        for number, row in enumerate(rows):
            _draw_row(sheet, row, left, top + TITLE_PX + 3 * LINE_PX + number * ROW_PX)


def _draw_heads(draw: ImageDraw.ImageDraw, title: str, left: int, top: int) -> None:
    for place, head in enumerate((f"{title}: blurred", "deblurred", "sharp")):
        draw.text((left + place * (CELL_PX + GAP_PX), top), head, fill=INK, font=_font(FONT_PX))


def _draw_row(sheet: Image.Image, row: SheetRow, left: int, top: int) -> None:
    draw, font = ImageDraw.Draw(sheet), _font(FONT_PX)
    corner = f"crop at row {row.corner[0]}, column {row.corner[1]}"
    gain = f"{row.score.quoted_gain_db:+.2f} dB"
    name = _fitted(draw, row.score.name, font, HALF_PX - int(draw.textlength(f"  {gain}  {corner}", font)))
    draw.text((left, top), f"{name}  {gain}", fill=INK, font=font)
    draw.text((left + HALF_PX, top), corner, fill=FAINT, font=font, anchor="ra")
    for place, (crop, text) in enumerate(zip(row.crops, _captions(row.score), strict=True)):
        cell = left + place * (CELL_PX + GAP_PX)
        sheet.paste(_enlarged(crop), (cell, top + LINE_PX))
        draw.text((cell, top + LINE_PX + CELL_PX + 3), text, fill=INK, font=font)


def _captions(score: PictureScore) -> tuple[str, str, str]:
    height, width = score.size
    return _figures(score.blurred), _figures(score.deblurred), f"{height} x {width} px"


def _figures(scores: Scores) -> str:
    psnr, ssim = _shown(scores)
    return f"{scores[psnr]:.2f} dB" + (f" / {scores[ssim]:.3f}" if ssim else "")


def _about(section: Extremes) -> str:
    """Names of the figures in the captions."""
    psnr, ssim = _shown(section.largest[0].score.blurred)
    return f"{NAMES[psnr]}{f' and {NAMES[ssim]}' if ssim else ''}"


def _shown(scores: Scores) -> tuple[Metric, Metric | None]:
    """The PSNR and the SSIM that are quoted for the set; no SSIM where none was measured."""
    if "aligned_psnr_db" in scores:
        return "aligned_psnr_db", "aligned_ssim" if "aligned_ssim" in scores else None
    ssim: tuple[Metric, ...] = ("ssim_matlab3d", "ssim_skimage")
    return "psnr_db", next((metric for metric in ssim if metric in scores), None)


def _enlarged(crop: PictureArray) -> Image.Image:
    """The crop, by a whole factor without smoothing if it is small."""
    height, width = crop.shape[:2]
    factor = max(1, CELL_PX // max(height, width))
    return Image.fromarray(crop).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, px: int) -> str:
    """``text``, shortened from the left to ``px``: names differ at their ends."""
    if draw.textlength(text, font) <= px:
        return text
    start = next((n for n in range(1, len(text)) if draw.textlength("..." + text[n:], font) <= px), len(text))
    return "..." + text[start:]


def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)
