"""``msan blur``: blur a sharp picture as training does, or show what a blur looks like."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from msan.degradation.blur import BlurSpec

__all__ = ["blur"]

MOST_INSTANTS = 1000

screen = Console(highlight=False, emoji=False)


def blur(
    picture: Annotated[Path, typer.Argument(help="A sharp picture: JPEG, PNG, WebP or TIFF.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write. Default: NAME-blurred.png, NAME-blur-sheet.png."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="A contact sheet: eleven blurs of the picture's centre.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    length: Annotated[tuple[float, float], typer.Option(help="Shortest and longest path, px.")] = (1.0, 18.0),
    roll: Annotated[float, typer.Option(help="Largest shift by roll 400 px from the centre, px.")] = 2.0,
    zoom: Annotated[float, typer.Option(help="Largest shift by motion along the axis, there, px.")] = 2.0,
    wander: Annotated[float, typer.Option(help="How far paths bend, rad.")] = 2.0,
    noise: Annotated[float, typer.Option(help="Largest noise (standard deviation), 8-bit levels.")] = 2.0,
    moving_share: Annotated[float, typer.Option(help="Chance of regions that move on their own.")] = 0.2,
    jpeg_share: Annotated[float, typer.Option(help="Chance of JPEG compression.")] = 0.2,
    jpeg_quality: Annotated[tuple[int, int], typer.Option(help="Lowest and highest JPEG quality.")] = (60, 95),
) -> None:
    """Blur a picture with random synthetic motion blur, or show what it looks like (docs/synthetic-blur.md)."""
    from msan.degradation.blur import BlurSpec

    spec = BlurSpec(
        length_px=length,
        roll_px=roll,
        zoom_px=zoom,
        wander=wander,
        noise_levels=noise,
        sharp_share=0.0,
        moving_share=moving_share,
        jpeg_share=jpeg_share,
        jpeg_quality=jpeg_quality,
    )
    # One pose a pixel of the path, so that long paths leave no ghosts.
    spec = replace(spec, instants=min(max(spec.instants, math.ceil(length[1])), MOST_INSTANTS))
    line = _show(picture, output, spec, seed) if show else _blur(picture, output, spec, seed)
    screen.print(line, soft_wrap=True, markup=False)


def _blur(file: Path, output: Path | None, spec: BlurSpec, seed: int) -> str:
    """Write the blurred picture; its path and what was drawn."""
    from msan.degradation.blursheet import described
    from msan.degradation.degrade import degrade_picture
    from msan_runtime.image import read_picture, write_picture

    path = output or Path(f"{file.stem}-blurred.png")
    sharp = read_picture(file)
    pixels, drawn = degrade_picture(sharp.pixels, spec, seed)
    write_picture(path, replace(sharp, pixels=pixels))
    return f"{path}: {', '.join(described(drawn))}"


def _show(file: Path, output: Path | None, spec: BlurSpec, seed: int) -> str:
    """Write the contact sheet; its path."""
    from msan.degradation.blursheet import contact_sheet
    from msan_runtime.image import Picture, read_picture, write_picture

    path = output or Path(f"{file.stem}-blur-sheet.png")
    sheet = contact_sheet(read_picture(file).pixels, spec, seed)
    write_picture(path, Picture(pixels=sheet, alpha=None, grey=False, icc=None, exif=None))
    return str(path)
