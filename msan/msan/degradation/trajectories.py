"""Random camera trajectories, and how far they displace a picture's points."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from msan.degradation.blur import BlurSpec

__all__ = ["LEVER_PX", "limited", "max_shift_px", "random_trajectories"]

LEVER_PX = 400
"""Distance from the centre at which ``roll_px`` and ``zoom_px`` are measured."""


def random_trajectories(count: int, spec: BlurSpec, generator: torch.Generator) -> Tensor:
    """``count`` random camera trajectories: float32, count×T×4 (see ``msan.degradation.blur``), mean zero.

    The heading turns as a Brownian path with drift and the speed varies smoothly; the path is
    then scaled to a length drawn evenly from ``spec.length_px``, or to under half a pixel, without
    roll and zoom, for a share ``spec.sharp_share``. Roll and log scale change smoothly.

    The draws for the scale come last, and only if ``spec.zoom_px`` is not 0: version 1 of the
    fixed blur set rests on it.
    """
    steps = spec.instants - 1
    length = _uniform((count, 1, 1), spec.length_px, generator)
    nearly_sharp = torch.rand((count, 1, 1), generator=generator) < spec.sharp_share
    length = torch.where(nearly_sharp, _uniform((count, 1, 1), (0.0, 0.5), generator), length)
    heading = _heading(count, steps, spec.wander, generator)
    speed = torch.exp(0.5 * _smooth_noise(count, steps, generator))
    velocity = torch.stack((speed * heading.sin(), speed * heading.cos()), 2)
    velocity = velocity * (length / speed.sum(1).reshape(count, 1, 1))
    roll_rate = _lever_rate(count, steps, spec.roll_px, generator) * ~nearly_sharp[:, :, 0]
    path = _centred_path(torch.cat((velocity, roll_rate.unsqueeze(2)), 2))
    if not spec.zoom_px:
        return F.pad(path, (0, 1))
    scale_rate = _lever_rate(count, steps, spec.zoom_px, generator) * ~nearly_sharp[:, :, 0]
    return torch.cat((path, _centred_path(scale_rate.unsqueeze(2))), 2)


def max_shift_px(trajectories: Tensor, reach_px: float) -> int:
    """Whole pixels by which any point within ``reach_px`` of the picture's centre is displaced at most."""
    return math.ceil(float(_shift_bounds(trajectories, reach_px).max()))


def limited(trajectory: Tensor, *, reach_px: float, bound_px: float) -> Tensor:
    """A T×4 trajectory, shrunk as a whole so that no point within reach is displaced by over ``bound_px``."""
    largest = float(_shift_bounds(trajectory, reach_px).max())
    return trajectory if largest <= bound_px else trajectory * (bound_px / largest)


def _shift_bounds(trajectories: Tensor, reach_px: float) -> Tensor:
    """A bound of the displacement at each pose, px; of λ times the pose it is at most λ times that (0 <= λ <= 1)."""
    bound = trajectories[..., :2].norm(dim=-1) + trajectories[..., 2].abs() * reach_px
    # exp(|z|) - 1 is never less than |exp(z) - 1|, and convex in |z|.
    return bound + trajectories[..., 3:].abs().expm1().sum(-1) * reach_px


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


def _lever_rate(count: int, steps: int, lever_shift_px: float, generator: torch.Generator) -> Tensor:
    """count×steps smooth changes of an angle or a log scale that is worth up to ``lever_shift_px``."""
    rate = _smooth_noise(count, steps, generator) / steps
    return rate * (lever_shift_px / LEVER_PX * torch.rand((count, 1), generator=generator))


def _centred_path(velocity: Tensor) -> Tensor:
    path = F.pad(velocity.cumsum(1), (0, 0, 1, 0))
    return path - path.mean(1, keepdim=True)
