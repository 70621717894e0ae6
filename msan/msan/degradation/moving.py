"""Regions of a picture that move on their own during the exposure, in front of the rest.

A region is a soft-edged smooth shape, cut from the picture itself. At each instant its mask m and its
pixels f are seen along the region's own trajectory and laid over the background b, in linear light:
b + m·(f - b). At pose zero that is the picture, so the sharp picture stays the blur's centre.
What the region uncovers shows the picture's own pixels there, moved with the background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msan.degradation.blur import BlurSpec, frames_along
from msan.degradation.trajectories import random_trajectories

__all__ = ["MovingRegion", "frames_with_regions", "random_regions", "region_mask"]

HARMONICS = 5
OUTLINE_SPREAD = 0.35
"""Standard deviation of the first harmonic of the outline's log radius; harmonic k has 1/k of it."""

RADIUS = (0.08, 0.32)
"""Least and largest radius before the harmonics, as a share of the picture's shorter side."""

EDGE_PX = (1.5, 4.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class MovingRegion:
    """A region and how it moves.

    Attributes:
        trajectory: T×4 float32, as of a camera (see ``msan.degradation.blur``), about the region's own centre.
        centre: (down, right) as shares of the picture's height and width without its margin.
        radius: as a share of the shorter side without the margin.
        outline: complex amplitude of each harmonic, from the first, of the outline's log radius.
        edge_px: width of the soft edge.
    """

    trajectory: Tensor
    centre: tuple[float, float]
    radius: float
    outline: tuple[complex, ...]
    edge_px: float

    def centre_px(self, height: int, width: int) -> tuple[float, float]:
        """(Down, right) from the centre of a picture of this size, without margin, to the region's."""
        return (self.centre[0] - 0.5) * height, (self.centre[1] - 0.5) * width


def random_regions(spec: BlurSpec, generator: torch.Generator) -> tuple[MovingRegion, ...]:
    """One or two regions for a share ``spec.moving_share`` of the calls, none for the others.

    Each has a trajectory of ``spec``'s kind, never nearly sharp. Later ones are in front.
    """
    chance, second = torch.rand(2, generator=generator).tolist()
    if chance >= spec.moving_share:
        return ()
    return tuple(_random_region(spec, generator) for _ in range(1 + (second < 0.5)))


def region_mask(region: MovingRegion, height: int, width: int, *, margin_px: int, device: torch.device) -> Tensor:
    """height×width float32 in [0, 1], the margin included: 1 inside the region at pose zero, 0 outside."""
    inner_height, inner_width = height - 2 * margin_px, width - 2 * margin_px
    centre_down, centre_right = region.centre_px(inner_height, inner_width)
    down = torch.arange(height, device=device) - ((height - 1) / 2 + centre_down)
    right = torch.arange(width, device=device) - ((width - 1) / 2 + centre_right)
    angle = torch.atan2(down[:, None], right[None])
    log_radius = torch.full_like(angle, math.log(region.radius * min(inner_height, inner_width)))
    for k, amplitude in enumerate(region.outline, 1):
        log_radius += amplitude.real * torch.cos(k * angle) + amplitude.imag * torch.sin(k * angle)
    distance = torch.hypot(down[:, None], right[None])
    inside = ((log_radius.exp() - distance) / region.edge_px + 0.5).clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


def frames_with_regions(
    linear: Tensor, frames: Iterator[Tensor], regions: Sequence[Sequence[MovingRegion]], *, margin_px: int
) -> Iterator[Tensor]:
    """``frames`` of the background, with each picture's regions laid over it.

    Args:
        linear: N×3×H×W linear light, the pictures with their margin.
        frames: what ``frames_along`` gives for them; changed in place.
        regions: those of each picture.
        margin_px: as given to ``frames_along``.
    """
    depth = max(map(len, regions))
    layers = [_layer(linear, regions, level, margin_px) for level in range(depth)]
    for frame, *views in zip(frames, *(layer for _, layer in layers), strict=True):
        for (members, _), view in zip(layers, views, strict=True):
            behind = frame[members]
            frame[members] = behind + view[:, 3:] * (view[:, :3] - behind)
        yield frame


def _layer(
    linear: Tensor, regions: Sequence[Sequence[MovingRegion]], level: int, margin_px: int
) -> tuple[Tensor, Iterator[Tensor]]:
    """The pictures that have a region at ``level``, and pixels and mask of it (M×4×h×w) at each instant."""
    height, width = linear.shape[2:]
    members = [index for index, own in enumerate(regions) if len(own) > level]
    chosen = [regions[index][level] for index in members]
    masks = [region_mask(region, height, width, margin_px=margin_px, device=linear.device) for region in chosen]
    inner = (height - 2 * margin_px, width - 2 * margin_px)
    views = frames_along(
        torch.cat((linear[members], torch.stack(masks)[:, None]), 1),
        torch.stack([region.trajectory for region in chosen]),
        margin_px=margin_px,
        # From what the region turns about, its own centre, to the centre of the picture.
        offset_px=-torch.tensor([region.centre_px(*inner) for region in chosen]),
    )
    return torch.tensor(members, device=linear.device), views


def _random_region(spec: BlurSpec, generator: torch.Generator) -> MovingRegion:
    down, right, radius, edge = torch.rand(4, generator=generator).tolist()
    amplitudes = torch.randn((HARMONICS, 2), generator=generator) * OUTLINE_SPREAD
    return MovingRegion(
        trajectory=random_trajectories(1, replace(spec, sharp_share=0.0), generator)[0],
        centre=(down, right),
        radius=RADIUS[0] + (RADIUS[1] - RADIUS[0]) * radius,
        outline=tuple(complex(a, b) / k for k, (a, b) in enumerate(amplitudes.tolist(), 1)),
        edge_px=EDGE_PX[0] + (EDGE_PX[1] - EDGE_PX[0]) * edge,
    )
