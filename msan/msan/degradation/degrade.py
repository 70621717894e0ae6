"""From sharp crops to what a camera would have written: motion blur, noise, and JPEG or rounding to 8 bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from msan.degradation.blur import BlurError, BlurSpec, frames_along, linear_from_srgb, srgb_from_linear
from msan.degradation.jpeg import JpegSpec, jpeg_round_trip
from msan.degradation.moving import MovingRegion, frames_with_regions, random_regions
from msan.degradation.trajectories import limited, random_trajectories
from msan_runtime.contract import PictureArray

__all__ = [
    "Degradation",
    "apply_degradations",
    "degrade",
    "degrade_picture",
    "draw_degradation",
    "levels_from_picture",
    "margin_px",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Degradation:
    """All that is random in how one picture is degraded.

    Attributes:
        trajectory: T×4 float32, the camera's (see ``msan.degradation.blur``).
        regions: regions that move on their own, the hindmost first.
        noise_levels: standard deviation of the Gaussian noise, in 8-bit levels.
        noise_seed: of the noise.
        jpeg: compression after the noise, or ``None``.
    """

    trajectory: Tensor
    regions: tuple[MovingRegion, ...]
    noise_levels: float
    noise_seed: int
    jpeg: JpegSpec | None


def degrade(
    crops: Tensor, seeds: Sequence[int], spec: BlurSpec, *, margin_px: int, offset_px: Tensor | None = None
) -> Tensor:
    """Blur, noise, and JPEG or rounding, drawn by ``spec``, made on the device of ``crops``.

    Each picture depends on its own crop, seed and offset alone: on the CPU to the bit, whatever the
    batch around it. Everything random but the noise's values is drawn on the CPU; those come from
    the device's generator, so that a GPU gives other noise of the same strength.

    Args:
        crops: uint8 N×3×H×W sharp sRGB, each with a margin.
        seeds: one a crop.
        spec: what to draw.
        margin_px: border to cut off; with ``margin_px(spec)`` no blur looks outside its crop: a
            trajectory that would is shrunk.
        offset_px: N×2, (down, right) from the centre of each crop's picture to the crop's; zero if left out.

    Returns:
        float32 N×3×(H - 2·margin)×(W - 2·margin) in [0, 1], on the 8-bit grid.

    Raises:
        BlurError: for crops of another type or shape, or not one seed a crop.
    """
    _check_crops(crops, margin_px)
    if len(seeds) != len(crops):
        raise BlurError(f"{len(crops)} crops need as many seeds, not {len(seeds)}")
    offset = torch.zeros(len(crops), 2) if offset_px is None else offset_px.cpu().float()
    diagonal = math.hypot(crops.shape[2] - 2 * margin_px, crops.shape[3] - 2 * margin_px)
    drawn = [
        _within(draw_degradation(seed, spec), diagonal / 2 + math.hypot(*centre), diagonal, _bound_px(spec))
        for seed, centre in zip(seeds, offset.tolist(), strict=True)
    ]
    return apply_degradations(crops, drawn, margin_px=margin_px, offset_px=offset)


def margin_px(spec: BlurSpec) -> int:
    """Border that a crop needs so that no blur of ``degrade`` looks outside it."""
    return _bound_px(spec) + 1


def degrade_picture(picture: PictureArray, spec: BlurSpec, seed: int) -> tuple[PictureArray, Degradation]:
    """A whole picture (uint8 H×W×3), degraded on the CPU, and what was drawn for it.

    What lies outside the picture is its replicated edge; JPEG blocks begin at its corner.
    """
    drawn = draw_degradation(seed, spec)
    if drawn.jpeg is not None:
        drawn = replace(drawn, jpeg=replace(drawn.jpeg, phase_px=(0, 0)))
    sharp = torch.from_numpy(picture).permute(2, 0, 1)[None]
    degraded = apply_degradations(sharp, [drawn], margin_px=0)[0]
    return levels_from_picture(degraded), drawn


def levels_from_picture(picture: Tensor) -> PictureArray:
    """uint8 H×W×3 of a float 3×H×W picture in [0, 1]."""
    return np.ascontiguousarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def draw_degradation(seed: int, spec: BlurSpec) -> Degradation:
    """What ``spec`` gives for ``seed``: any whole number of up to 63 bits.

    Numbers of the spec that are not about the same thing do not disturb each other: with JPEG
    switched off, say, the same seed gives the same trajectory, noise and regions.
    """
    # Callers seed generators with the same numbers: mixed, so that ours are not the numbers that they drew.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + 0x1F83D9ABFB41BD6B) % (1 << 63))
    noise_share, chance, quality, halved = torch.rand(4, generator=generator).tolist()
    noise_seed, phase_down, phase_right = torch.randint(1 << 62, (3,), generator=generator).tolist()
    lowest, highest = spec.jpeg_quality
    jpeg = JpegSpec(
        quality=lowest + int(quality * (highest - lowest + 1)),
        subsampling="4:2:0" if halved < 0.5 else "4:4:4",
        phase_px=(phase_down % 16, phase_right % 16),
    )
    regions = random_regions(spec, torch.Generator().manual_seed(noise_seed + 1))
    return Degradation(
        trajectory=random_trajectories(1, spec, generator)[0],
        regions=regions,
        noise_levels=spec.noise_levels * noise_share,
        noise_seed=noise_seed,
        jpeg=jpeg if chance < spec.jpeg_share else None,
    )


def apply_degradations(
    crops: Tensor, drawn: Sequence[Degradation], *, margin_px: int, offset_px: Tensor | None = None
) -> Tensor:
    """Make what was drawn, one degradation a crop; otherwise as ``degrade``, but no trajectory is shrunk.

    Raises:
        BlurError: for crops of another type or shape, or no larger than their margin.
    """
    _check_crops(crops, margin_px)
    linear = _linear_by_level(crops.device)[crops.contiguous().int()]
    trajectories = torch.stack([one.trajectory for one in drawn])
    frames = frames_along(linear, trajectories, margin_px=margin_px, offset_px=offset_px)
    frames = frames_with_regions(linear, frames, [one.regions for one in drawn], margin_px=margin_px)
    total = next(frames)
    for frame in frames:
        total += frame
    mean = (total / trajectories.shape[1]).clamp_(0, 1)
    # One by one: over a whole batch, the last bit of a power depends on a pixel's place in it.
    return torch.stack([_recorded(one, how) for one, how in zip(mean, drawn, strict=True)])


def _recorded(linear: Tensor, how: Degradation) -> Tensor:
    """What the sensor and the file make of one picture's linear light."""
    srgb = srgb_from_linear(linear)
    if how.noise_levels:
        generator = torch.Generator(linear.device).manual_seed(how.noise_seed)
        srgb += torch.randn(srgb.shape, generator=generator, device=srgb.device) * (how.noise_levels / 255)
    if how.jpeg is not None:
        return jpeg_round_trip(srgb, how.jpeg)
    return (srgb.clamp_(0, 1) * 255).round_() / 255


def _linear_by_level(device: torch.device) -> Tensor:
    return linear_from_srgb(torch.arange(256) / 255).to(device)


def _within(drawn: Degradation, reach_px: float, region_reach_px: float, bound_px: float) -> Degradation:
    """``drawn``, its trajectories shrunk where they displace a point within reach by more than the bound."""
    regions = [
        replace(region, trajectory=limited(region.trajectory, reach_px=region_reach_px, bound_px=bound_px))
        for region in drawn.regions
    ]
    trajectory = limited(drawn.trajectory, reach_px=reach_px, bound_px=bound_px)
    return replace(drawn, trajectory=trajectory, regions=tuple(regions))


def _bound_px(spec: BlurSpec) -> int:
    """Largest displacement that is let through: longer ones are rare."""
    return math.ceil(0.75 * spec.length_px[1] + 2 * spec.roll_px + 2 * spec.zoom_px)


def _check_crops(crops: Tensor, margin_px: int) -> None:
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[1] != 3 or not len(crops):
        raise BlurError(f"crops must be uint8 N×3×H×W, not {crops.dtype} {tuple(crops.shape)}")
    if margin_px < 0 or min(crops.shape[2:]) <= 2 * margin_px:
        raise BlurError(f"crops of {crops.shape[2]}×{crops.shape[3]} px are no larger than a margin of {margin_px} px")
