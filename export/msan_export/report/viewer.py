"""What a page shows of one picture: two versions of it under a slider, and where and how far they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from msan_export.acceptance.verdict import Exhibit
from msan_export.report.pictures import (
    Crop,
    Levels,
    colours,
    crop_around,
    data_uri,
    differences,
    fitting_side,
    heat_map,
    pooled,
    scale_top,
)
from msan_runtime.contract import PictureArray

__all__ = ["HeatMap", "Layer", "Size", "Version", "Viewer", "viewer_of", "viewer_of_exhibit"]

FEW_PIXELS = 9
"""As many may differ most for one of them to be pointed at."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bounds on what a page's pictures take: their longest side, and bytes for each viewer."""

    side_px: int
    viewer_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Version:
    """One version of a picture: a short name for the program, a name for people, uint8 H×W×3."""

    key: str
    name: str
    pixels: PictureArray


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One version as it is embedded, and the sides of the slider on which it is shown at first."""

    key: str
    name: str
    uri: str
    sides: str


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """The differences of the whole picture in colours; heights and widths in pixels.

    Attributes:
        uri: the map.
        height, width: of the map.
        factor: side of the square of pixels that one pixel of the map stands for.
        outline: top, left, height and width of the part under the slider, in pixels of the map; ``None`` if it is all.
        worst: row and column of the pixel that differs most, in pixels of the map; ``None`` if it is one of many.
        top: levels at which the scale ends.
        ticks: levels to be written below the scale, with their place in per cent.
        bound: the largest difference allowed, in per cent of the scale; ``None`` if there is none, or beyond it.
        ramp: the scale itself.
    """

    uri: str
    height: int
    width: int
    factor: int
    outline: tuple[float, float, float, float] | None
    worst: tuple[float, float] | None
    top: int
    ticks: tuple[tuple[int, float], ...]
    bound: float | None
    ramp: str


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """A slider and a heat map, ready for the template."""

    key: str
    name: str
    layers: tuple[Layer, ...]
    left: str
    right: str
    height: int
    width: int
    crop_words: str
    worst_percent: tuple[float, float]
    heat: HeatMap

    @property
    def rule(self) -> str:
        """The style rule that gives the viewer its shape."""
        ratio, heat_ratio = self.width / self.height, self.heat.width / self.heat.height
        return f"#{self.key}{{--ratio:{ratio:.4f};--heat-ratio:{heat_ratio:.4f}}}"


def viewer_of_exhibit(exhibit: Exhibit, number: int, size: Size) -> Viewer:
    """The viewer of a picture of an acceptance test: input, reference and converted."""
    versions = (
        Version(key="input", name="input", pixels=exhibit.blurred),
        Version(key="reference", name="reference", pixels=exhibit.expected),
        Version(key="converted", name="converted", pixels=exhibit.given),
    )
    bound = exhibit.threshold.max_difference * 255 / exhibit.threshold.peak
    return viewer_of(
        versions, ("reference", "converted"), key=f"worst-{number}", name=exhibit.case, bound=bound, size=size
    )


def viewer_of(
    versions: Sequence[Version], compared: tuple[str, str], *, key: str, name: str, bound: float | None, size: Size
) -> Viewer:
    """A viewer of ``versions``, all of one shape, the two ``compared`` under the slider at first.

    Args:
        versions: at least those two.
        compared: keys of the versions whose difference is shown.
        key: of the element.
        name: of the picture.
        bound: largest difference allowed, in levels of 255.
        size: of what is embedded.
    """
    pixels = {version.key: version.pixels for version in versions}
    levels = differences(*(pixels[key] for key in compared))
    top = scale_top(levels)
    heat = heat_map(levels, top)
    side = fitting_side([*pixels.values(), heat, heat], levels, most_px=size.side_px, most_bytes=size.viewer_bytes)
    crop = crop_around(levels, side)
    shown = (*versions, Version(key="difference", name="difference", pixels=heat))
    return Viewer(
        key=key,
        name=name,
        layers=tuple(_layers(shown, crop, compared)),
        left=compared[0],
        right=compared[1],
        height=crop.height,
        width=crop.width,
        crop_words=_crop_words(crop, levels.shape, bool(levels.any())),
        worst_percent=(_middle(crop.worst[0], crop.height), _middle(crop.worst[1], crop.width)),
        heat=_heat(levels, crop, top, bound, side),
    )


def _layers(versions: Sequence[Version], crop: Crop, compared: tuple[str, str]) -> Iterator[Layer]:
    sides = {compared[0]: "on-left", compared[1]: "on-right"}
    for version in versions:
        uri = data_uri(crop.of(version.pixels))
        yield Layer(key=version.key, name=version.name, uri=uri, sides=sides.get(version.key, ""))


def _crop_words(crop: Crop, shape: tuple[int, ...], differs: bool) -> str:
    height, width = shape[:2]
    if (crop.height, crop.width) == (height, width):
        return f"The whole picture, {height}×{width} px, pixel by pixel."
    around = "around the pixel that differs most" if differs else "from the middle"
    return f"{crop.height}×{crop.width} of {height}×{width} px, {around}, pixel by pixel."


def _middle(index: int, length: int) -> float:
    return round(100 * (index + 0.5) / length, 2)


def _heat(levels: Levels, crop: Crop, top: int, bound: float | None, side_px: int) -> HeatMap:
    small, factor = pooled(levels, side_px)
    rows, columns = small.shape
    whole = levels.shape == (crop.height, crop.width)
    row, column = divmod(int(small.argmax()), columns)
    inside = bound is not None and bound <= top
    return HeatMap(
        uri=data_uri(heat_map(small, top)),
        height=rows,
        width=columns,
        factor=factor,
        outline=None if whole else _outline(crop, factor),
        worst=(row + 0.5, column + 0.5) if 0 < np.count_nonzero(levels == levels.max()) <= FEW_PIXELS else None,
        top=top,
        ticks=tuple((level, 100 * level / top) for level in _tick_levels(top)),
        bound=round(100 * bound / top, 2) if bound is not None and inside else None,
        ramp=data_uri(colours(64)[None]),
    )


def _outline(crop: Crop, factor: int) -> tuple[float, float, float, float]:
    return crop.top / factor, crop.left / factor, crop.height / factor, crop.width / factor


def _tick_levels(top: int) -> tuple[int, ...]:
    return (0, top // 4, top // 2, 3 * top // 4, top)
