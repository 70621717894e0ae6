"""A contact sheet of synthetic blur: a sharp crop, and what a spec makes of it, path by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from msan.degradation.blur import BlurError, BlurSpec
from msan.degradation.degrade import Degradation, apply_degradations, draw_degradation, levels_from_picture, margin_px
from msan.degradation.moving import region_mask
from msan.degradation.trajectories import LEVER_PX
from msan_runtime.contract import PictureArray

__all__ = ["contact_sheet", "described"]

COLUMNS, ROWS = 4, 3
TILE_PX = 264
SMALLEST_CROP_PX = 64
GAP_PX = 10
FONT_PX = 14
CAPTION_PX = 3 * FONT_PX + 8
INSET_PX = 76

PAPER, INK, QUIET = (250, 250, 248), (20, 20, 20), (110, 110, 110)
CAMERA, REGIONS = (255, 255, 255), ((255, 176, 0), (0, 220, 200))

Point = tuple[float, float]


def contact_sheet(picture: PictureArray, spec: BlurSpec, seed: int) -> PictureArray:
    """The sharp centre of ``picture`` and eleven blurred versions of it with captions: uint8 H×W×3.

    Path lengths grow evenly over ``spec.length_px``. Every third version has moving regions and every
    third is a JPEG, unless their share in ``spec`` is 0. Each version shows the camera's path (white),
    the paths of its regions (coloured, as their outlines), all at one scale, with a mark at the start.

    Raises:
        BlurError: for a picture that leaves less than 64 px a side between the blur's margins.
    """
    margin = margin_px(spec)
    side = min(TILE_PX, *(size - 2 * margin for size in picture.shape[:2]))
    if side < SMALLEST_CROP_PX:
        raise BlurError(
            f"the picture is {picture.shape[0]}×{picture.shape[1]} px; a sheet of this blur needs"
            f" {SMALLEST_CROP_PX + 2 * margin} px a side. Take a larger one, or shorter paths"
        )
    crop = _centre(picture, side + 2 * margin)
    drawn = [_version(index, spec, seed) for index in range(COLUMNS * ROWS - 1)]
    tensor = torch.from_numpy(crop).permute(2, 0, 1)[None]
    blurred = [apply_degradations(tensor, [one], margin_px=margin)[0] for one in drawn]
    tiles = [_tile(_centre(crop, side)), *(_tile(levels_from_picture(one)) for one in blurred)]
    scale = _inset_scale(drawn)
    for tile, one in zip(tiles[1:], drawn, strict=True):
        _draw_regions(tile, one, side)
        _draw_paths(tile, one, scale)
    captions = [["sharp", f"centre of the picture, {side} px"], *(described(one) for one in drawn)]
    return _laid_out(tiles, captions)


def described(drawn: Degradation) -> list[str]:
    """What was drawn, in words: the camera, the regions, what follows the blur."""
    camera = drawn.trajectory
    lines = [f"path {_length_px(camera):.1f} px, roll {_swing_px(camera, 2):.1f}, zoom {_swing_px(camera, 3):.1f}"]
    if drawn.regions:
        lengths = " and ".join(f"{_length_px(region.trajectory):.1f}" for region in drawn.regions)
        lines.append(f"{len(drawn.regions)} moving, path {lengths} px")
    after = f"noise {drawn.noise_levels:.1f}"
    if drawn.jpeg is not None:
        after += f", JPEG {drawn.jpeg.quality} {drawn.jpeg.subsampling}"
    return [*lines, after]


def _version(index: int, spec: BlurSpec, seed: int) -> Degradation:
    """The ``index``-th blurred version of the sheet."""
    low, high = spec.length_px
    length = low + (high - low) * index / (COLUMNS * ROWS - 2)
    chosen = replace(
        spec,
        length_px=(length, length),
        sharp_share=0.0,
        moving_share=float(spec.moving_share > 0 and index % 3 == 1),
        jpeg_share=float(spec.jpeg_share > 0 and index % 3 == 2),
    )
    return draw_degradation(seed + index, chosen)


def _centre(picture: PictureArray, side_px: int) -> PictureArray:
    top, left = ((size - side_px) // 2 for size in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + side_px, left : left + side_px])


def _tile(pixels: PictureArray) -> Image.Image:
    """Enlarged to the size of a tile where it is smaller, without smoothing."""
    return Image.fromarray(pixels).resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST)


def _length_px(trajectory: Tensor) -> float:
    return float(trajectory[:, :2].diff(dim=0).norm(dim=1).sum())


def _swing_px(trajectory: Tensor, component: int) -> float:
    """From one extreme to the other, as the displacement 400 px from the centre."""
    return float(trajectory[:, component].max() - trajectory[:, component].min()) * LEVER_PX


def _paths(drawn: Degradation) -> list[Tensor]:
    return [one.trajectory[:, :2] for one in (drawn, *drawn.regions)]


def _inset_scale(drawn: Sequence[Degradation]) -> float:
    """Pixels of the sheet for one of the path, so that the widest path fits its inset."""
    widest = max(float(path.abs().max()) for one in drawn for path in _paths(one))
    return (INSET_PX / 2 - 8) / max(widest, 1.0)


def _draw_paths(tile: Image.Image, drawn: Degradation, scale: float) -> None:
    """The paths in a dark inset in the tile's lower right corner."""
    draw = ImageDraw.Draw(tile, "RGBA")
    corner = TILE_PX - INSET_PX
    draw.rectangle((corner, corner, TILE_PX, TILE_PX), fill=(0, 0, 0, 170))
    middle = corner + INSET_PX / 2
    for path, colour in zip(_paths(drawn), (CAMERA, *REGIONS), strict=False):
        # A pose says where a pixel looks; what it shows moves the other way.
        points: list[Point] = [(middle - right * scale, middle - down * scale) for down, right in path.tolist()]
        draw.line(points, fill=colour, width=2, joint="curve")
        x, y = points[0]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _draw_regions(tile: Image.Image, drawn: Degradation, side_px: int) -> None:
    """The outline of each region where it is at pose zero."""
    for region, colour in zip(drawn.regions, REGIONS, strict=False):
        mask = region_mask(region, side_px, side_px, margin_px=0, device=torch.device("cpu")).numpy() > 0.5
        inside = np.array(Image.fromarray(mask).resize(tile.size, Image.Resampling.NEAREST))
        padded = np.pad(inside, 1, mode="edge")
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        tile.paste(colour, mask=Image.fromarray(inside & ~core))


def _laid_out(tiles: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> PictureArray:
    step_down, step_right = TILE_PX + CAPTION_PX + GAP_PX, TILE_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + COLUMNS * step_right, GAP_PX + ROWS * step_down), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_PX)
    for index, (tile, lines) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(index, COLUMNS)
        top, left = GAP_PX + row * step_down, GAP_PX + column * step_right
        sheet.paste(tile, (left, top))
        for number, line in enumerate(lines):
            place = (left, top + TILE_PX + 4 + number * (FONT_PX + 1))
            draw.text(place, line, fill=QUIET if number else INK, font=font)
    return np.array(sheet)
