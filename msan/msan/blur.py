"""Synthetic motion blur: the average, in linear light, of a picture along a camera trajectory.

A trajectory is a T×3 tensor of camera poses at T instants, spread evenly over the exposure:
shift down (px), shift right (px), roll (rad, about the picture's centre). Its mean is zero,
so that the sharp picture sits at the blur's centroid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "BlurSpec",
    "blur_along",
    "linear_from_srgb",
    "max_shift_px",
    "random_trajectories",
    "srgb_from_linear",
]


@dataclass(frozen=True, kw_only=True)
class BlurSpec:
    """What blur to draw.

    Attributes:
        length_px: shortest and longest path that the camera travels in an exposure, in pixels.
        roll_px: largest displacement by camera roll, in pixels, 400 px from the picture's centre.
        wander: how far the path bends: standard deviation of the change of heading in an exposure, rad.
        noise_levels: largest standard deviation of the Gaussian noise after the blur, in 8-bit levels.
        sharp_share: share of pictures that get (next to) no blur, so that sharp input stays sharp.
        instants: poses averaged in an exposure; at least ``length_px`` of them leaves no ghosts.
    """

    length_px: tuple[float, float] = (1.0, 18.0)
    roll_px: float = 2.0
    wander: float = 2.0
    noise_levels: float = 2.0
    sharp_share: float = 0.1
    instants: int = 25

    def __post_init__(self) -> None:
        low, high = self.length_px
        if not 0 <= low <= high:
            raise ValueError(f"length_px must be 0 <= shortest <= longest, not {self.length_px}")
        if self.instants < 2:
            raise ValueError(f"instants must be at least 2, not {self.instants}")
        if not 0 <= self.sharp_share <= 1:
            raise ValueError(f"sharp_share must lie in [0, 1], not {self.sharp_share}")
        for name in ("roll_px", "wander", "noise_levels"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")


def linear_from_srgb(srgb: Tensor) -> Tensor:
    """Linear light in [0, 1] from sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(linear: Tensor) -> Tensor:
    """sRGB values in [0, 1] from linear light in [0, 1] (IEC 61966-2-1)."""
    power = linear.clamp(min=0.0031308) ** (1 / 2.4)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * power - 0.055)


def random_trajectories(count: int, spec: BlurSpec, generator: torch.Generator) -> Tensor:
    """``count`` random camera trajectories: float32, count×T×3 (see the module), mean zero.

    The heading turns as a Brownian path with drift and the speed varies smoothly; the path is
    then scaled to a length drawn evenly from ``spec.length_px``, or to under half a pixel for a
    share ``spec.sharp_share``.
    """
    steps = spec.instants - 1
    length = _uniform((count, 1, 1), spec.length_px, generator)
    nearly_sharp = torch.rand((count, 1, 1), generator=generator) < spec.sharp_share
    length = torch.where(nearly_sharp, _uniform((count, 1, 1), (0.0, 0.5), generator), length)
    heading = _heading(count, steps, spec.wander, generator)
    speed = torch.exp(0.5 * _smooth_noise(count, steps, generator))
    velocity = torch.stack((speed * heading.sin(), speed * heading.cos()), 2)
    velocity = velocity * (length / speed.sum(1).reshape(count, 1, 1))
    roll_rate = _smooth_noise(count, steps, generator) / steps
    roll_scale = spec.roll_px / 400 * torch.rand((count, 1), generator=generator) * (~nearly_sharp[:, :, 0])
    velocity = torch.cat((velocity, (roll_rate * roll_scale).unsqueeze(2)), 2)
    path = F.pad(velocity.cumsum(1), (0, 0, 1, 0))
    return path - path.mean(1, keepdim=True)


def max_shift_px(trajectories: Tensor, reach_px: float) -> int:
    """Whole pixels by which any point within ``reach_px`` of the picture's centre is displaced at most."""
    shift = trajectories[..., :2].norm(dim=-1) + trajectories[..., 2].abs() * reach_px
    return math.ceil(float(shift.max()))


def blur_along(
    srgb: Tensor,
    trajectories: Tensor,
    *,
    margin_px: int = 0,
    offset_px: Tensor | None = None,
) -> Tensor:
    """The motion blur of pictures seen along camera trajectories, averaged in linear light.

    Args:
        srgb: N×3×H×W, float32 sRGB in [0, 1].
        trajectories: N×T×3, one trajectory a picture.
        margin_px: border to cut off, so that a crop with a margin gives a blur without edge effects.
            What lies outside the picture is its replicated edge.
        offset_px: N×2, (down, right) from the centre of the whole picture to the centre of this
            crop of it: camera roll turns about the former. Zero if left out.

    Returns:
        N×3×(H - 2·margin)×(W - 2·margin), float32 sRGB in [0, 1].
    """
    count, _, height, width = srgb.shape
    offset = torch.zeros(count, 2) if offset_px is None else offset_px
    linear = linear_from_srgb(srgb)
    rows = torch.arange(margin_px, height - margin_px) - (height - 1) / 2
    columns = torch.arange(margin_px, width - margin_px) - (width - 1) / 2
    total = torch.zeros(count, 3, len(rows), len(columns))
    for pose in trajectories.unbind(1):
        down, right = _displaced(rows, columns, offset, pose)
        grid = torch.stack((right * (2 / width), down * (2 / height)), 3)
        total += F.grid_sample(linear, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return srgb_from_linear((total / trajectories.shape[1]).clamp(0, 1))


def _displaced(rows: Tensor, columns: Tensor, offset: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel (down, right of the crop's centre) looks under ``pose``: two N×H×W tensors."""
    down = rows.reshape(1, -1, 1) + offset[:, 0].reshape(-1, 1, 1)
    right = columns.reshape(1, 1, -1) + offset[:, 1].reshape(-1, 1, 1)
    cosine, sine = pose[:, 2].cos().reshape(-1, 1, 1), pose[:, 2].sin().reshape(-1, 1, 1)
    shift = pose[:, :2] - offset
    turned_down = cosine * down + sine * right + shift[:, 0].reshape(-1, 1, 1)
    turned_right = cosine * right - sine * down + shift[:, 1].reshape(-1, 1, 1)
    return turned_down, turned_right


def _uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)


def _smooth_noise(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """count×steps of unit variance, smooth over about a third of the exposure."""
    knots = torch.randn((count, 1, 5), generator=generator)
    return F.interpolate(knots, steps, mode="linear", align_corners=True)[:, 0]


def _heading(count: int, steps: int, wander: float, generator: torch.Generator) -> Tensor:
    """count×steps headings in rad: any first direction, then a Brownian path with drift."""
    first = _uniform((count, 1), (0.0, 2 * math.pi), generator)
    amount = wander * torch.rand((count, 1), generator=generator)
    turns = torch.randn((count, steps), generator=generator) / math.sqrt(steps)
    drift = torch.randn((count, 1), generator=generator) / steps
    return first + amount * (turns + drift).cumsum(1)
