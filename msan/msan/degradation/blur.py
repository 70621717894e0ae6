"""Synthetic motion blur: the average, in linear light, of a picture seen along a camera trajectory.

A trajectory is a T×4 tensor of camera poses at T instants, spread evenly over the exposure: shift
down (px), shift right (px), roll (rad) and log scale, both about the picture's centre. Under the pose
(d, r, φ, z) the pixel at p shows what lies at exp(z)·R(φ)·p + (d, r); T×3 stands for z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from msan_runtime.errors import MsanError

__all__ = ["BlurError", "BlurSpec", "blur_along", "frames_along", "linear_from_srgb", "srgb_from_linear"]


class BlurError(MsanError):
    """A synthetic blur that cannot be made: its numbers, or a picture that it does not fit."""


@dataclass(frozen=True, kw_only=True)
class BlurSpec:
    """What blur to draw.

    Attributes:
        length_px: shortest and longest path that the camera, or a moving region, travels in an exposure.
        roll_px: largest displacement by camera roll, in pixels, 400 px from the picture's centre.
        zoom_px: largest displacement by camera motion along its axis, in pixels, 400 px from the centre.
        wander: how far the path bends: standard deviation of the change of heading in an exposure, rad.
        noise_levels: largest standard deviation of the Gaussian noise after the blur, in 8-bit levels.
        sharp_share: share of pictures that get (next to) no camera blur, so that sharp input stays sharp.
        instants: poses averaged in an exposure; at least ``length_px`` of them leaves no ghosts.
        moving_share: share of pictures in which one or two regions move on their own.
        jpeg_share: share of pictures that go through JPEG after the noise.
        jpeg_quality: lowest and highest JPEG quality, 1 to 100 on libjpeg's scale.

    Raises:
        BlurError: for a number out of range, or of another type.
    """

    length_px: tuple[float, float] = (1.0, 18.0)
    roll_px: float = 2.0
    zoom_px: float = 2.0
    wander: float = 2.0
    noise_levels: float = 2.0
    sharp_share: float = 0.1
    instants: int = 25
    moving_share: float = 0.2
    jpeg_share: float = 0.2
    jpeg_quality: tuple[int, int] = (60, 95)

    def __post_init__(self) -> None:
        if not _ordered(self.length_px, float, 0, math.inf):
            raise BlurError(f"length_px must be (shortest, longest), 0 <= shortest <= longest, not {self.length_px!r}")
        if not _ordered(self.jpeg_quality, int, 1, 100):
            raise BlurError(f"jpeg_quality must be (lowest, highest), whole, 1 to 100, not {self.jpeg_quality!r}")
        if not (_is_number(self.instants, int) and self.instants >= 2):
            raise BlurError(f"instants must be a whole number of at least 2, not {self.instants!r}")
        for name in ("roll_px", "zoom_px", "wander", "noise_levels"):
            if not (_is_number(getattr(self, name), float) and getattr(self, name) >= 0):
                raise BlurError(f"{name} must be a number of at least 0, not {getattr(self, name)!r}")
        for name in ("sharp_share", "moving_share", "jpeg_share"):
            if not (_is_number(getattr(self, name), float) and 0 <= getattr(self, name) <= 1):
                raise BlurError(f"{name} must lie in [0, 1], not {getattr(self, name)!r}")


def linear_from_srgb(srgb: Tensor) -> Tensor:
    """Linear light in [0, 1] from sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(linear: Tensor) -> Tensor:
    """sRGB values in [0, 1] from linear light in [0, 1] (IEC 61966-2-1)."""
    power = linear.clamp(min=0.0031308) ** (1 / 2.4)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * power - 0.055)


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
        trajectories: N×T×4 or N×T×3, one trajectory a picture.
        margin_px: border to cut off, so that a crop with a margin gives a blur without edge effects.
            What lies outside the picture is its replicated edge.
        offset_px: N×2, (down, right) from the centre of the whole picture to the centre of this
            crop of it: the camera rolls about, and moves towards, the former. Zero if left out.

    Returns:
        N×3×(H - 2·margin)×(W - 2·margin), float32 sRGB in [0, 1], on the device of ``srgb``.
    """
    frames = frames_along(linear_from_srgb(srgb), trajectories, margin_px=margin_px, offset_px=offset_px)
    total = next(frames)
    for frame in frames:
        total += frame
    return srgb_from_linear((total / trajectories.shape[1]).clamp(0, 1))


def frames_along(
    pictures: Tensor,
    trajectories: Tensor,
    *,
    margin_px: int = 0,
    offset_px: Tensor | None = None,
) -> Iterator[Tensor]:
    """What is seen at each instant: T times N×C×(H - 2·margin)×(W - 2·margin), float32, bilinear.

    Takes what ``blur_along`` takes, with any number of channels. A picture's frames do not depend
    on the pictures beside it: on the CPU to the bit.
    """
    height, width = pictures.shape[2:]
    device = pictures.device
    offset = torch.zeros(len(pictures), 2) if offset_px is None else offset_px.to(trajectories.device)
    poses = torch.cat((_turns(trajectories), trajectories[..., :2] - offset[:, None]), 2).to(device)
    rows = torch.arange(margin_px, height - margin_px, device=device) - (height - 1) / 2
    columns = torch.arange(margin_px, width - margin_px, device=device) - (width - 1) / 2
    offset = offset.to(device)
    down = (rows + offset[:, :1])[:, :, None]
    right = (columns + offset[:, 1:])[:, None]
    for pose in poses[..., None, None].unbind(1):
        cosine, sine, shift_down, shift_right = pose.unbind(1)
        looked_down = (cosine * down + sine * right).add_(shift_down).mul_(2 / height)
        looked_right = (cosine * right - sine * down).add_(shift_right).mul_(2 / width)
        grid = torch.stack((looked_right, looked_down), 3)
        yield F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _turns(trajectories: Tensor) -> Tensor:
    """N×T×2: cosine and sine of the roll, times the scale."""
    roll = trajectories[..., 2]
    turns = torch.stack((_one_by_one(torch.cos, roll), _one_by_one(torch.sin, roll)), 2)
    return turns * _one_by_one(torch.exp, trajectories[..., 3])[..., None] if trajectories.shape[2] == 4 else turns


def _one_by_one(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``function`` of each value by itself: over many at once its last bit may depend on a value's place."""
    return torch.stack([function(value) for value in values.flatten().unbind()]).reshape(values.shape)


def _is_number(value: object, kind: type[float]) -> bool:
    """Whether ``value`` is a finite number; a whole one for ``kind`` int."""
    if isinstance(value, float):
        return kind is float and math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _ordered(pair: object, kind: type[float], least: float, most: float) -> bool:
    """Whether ``pair`` is a tuple of two such numbers, the smaller first, within bounds."""
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(_is_number(value, kind) for value in pair):
        return False
    low, high = pair
    return least <= low <= high <= most
