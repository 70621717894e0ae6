"""Random camera trajectories: their means, lengths, roll and scale, and how far they displace points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msan.degradation.blur import BlurSpec
from msan.degradation.trajectories import limited, max_shift_px, random_trajectories

BLUR_SET_DRAWS = [
    # Length, seed; first, middle and last pose and the next two normal draws, as version 1 of the blur set made them.
    (
        2.0,
        24101415,
        [(-0.59674, -0.69539, 2.4960e-4), (0.11836, 0.02720, -9.467e-5), (0.31984, 0.72758, -1.9820e-4)],
        (0.62766, 0.00414),
    ),
    (
        10.0,
        24101419,
        [(-1.08657, -5.19373, -1.00373e-3), (0.21497, 0.32534, -4.6850e-4), (0.84081, 4.57859, 1.78813e-3)],
        (0.17473, 3.96374),
    ),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def path_lengths(trajectories: Tensor) -> Tensor:
    return trajectories[:, :, :2].diff(dim=1).norm(dim=2).sum(1)


def displacements(trajectory: Tensor, point: complex) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How far a T×4 trajectory displaces ``point`` (down + i·right of the centre) at each pose, px."""
    down, right, roll, log_scale = trajectory.double().numpy().T
    return np.abs(point * np.exp(log_scale - 1j * roll) + down + 1j * right - point)


@pytest.mark.parametrize("length_px", [(0.0, 0.0), (1.0, 18.0), (7.0, 7.0)])
@pytest.mark.parametrize("instants", [2, 25])
def test_trajectories_have_mean_zero_and_a_length_within_bounds(length_px: tuple[float, float], instants: int) -> None:
    spec = BlurSpec(length_px=length_px, sharp_share=0, instants=instants)
    trajectories = random_trajectories(200, spec, seeded())
    assert trajectories.shape == (200, instants, 4)
    assert trajectories.dtype == torch.float32
    assert float(trajectories.mean(1).abs().max()) < 1e-5
    lengths = path_lengths(trajectories)
    assert float(lengths.min()) >= length_px[0] - 1e-3
    assert float(lengths.max()) <= length_px[1] + 1e-3


def test_lengths_are_spread_evenly() -> None:
    lengths = path_lengths(random_trajectories(2000, BlurSpec(length_px=(2.0, 18.0), sharp_share=0), seeded()))
    counts = torch.histc(lengths, 4, 2, 18)
    assert float((counts / 500 - 1).abs().max()) < 0.15


def test_trajectories_follow_from_the_seed() -> None:
    spec = BlurSpec()
    first = random_trajectories(4, spec, seeded(3))
    torch.manual_seed(99)
    assert torch.equal(random_trajectories(4, spec, seeded(3)), first)
    assert not torch.equal(random_trajectories(4, spec, seeded(4)), first)


def test_all_pictures_may_be_all_but_sharp() -> None:
    trajectories = random_trajectories(200, BlurSpec(sharp_share=1, roll_px=50, zoom_px=50), seeded())
    assert float(path_lengths(trajectories).max()) < 0.5
    assert not trajectories[:, :, 2:].any()


def test_the_share_of_sharp_pictures_is_kept() -> None:
    spec = BlurSpec(length_px=(5.0, 18.0), sharp_share=0.25)
    sharp = path_lengths(random_trajectories(2000, spec, seeded())) < 0.5
    assert float(sharp.float().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("component", [2, 3])
def test_roll_and_scale_reach_what_they_are_given_400_px_from_the_centre(component: int) -> None:
    spec = BlurSpec(sharp_share=0, roll_px=3.0 * (component == 2), zoom_px=3.0 * (component == 3))
    turned = random_trajectories(2000, spec, seeded())
    assert not turned[:, :, 5 - component].any()
    lever = turned[:, :, component] * 400
    assert 1.5 < float(lever.abs().max()) <= 3.1
    # Smooth: a 24th of the exposure is worth little.
    assert float(lever.diff(dim=1).abs().max()) < 0.5


def test_zoom_changes_neither_paths_nor_roll() -> None:
    without = random_trajectories(5, BlurSpec(zoom_px=0.0), seeded(8))
    with_zoom = random_trajectories(5, BlurSpec(zoom_px=9.0), seeded(8))
    assert torch.equal(without[:, :, :3], with_zoom[:, :, :3])
    assert not without[:, :, 3].any()
    assert with_zoom[:, :, 3].any()


@pytest.mark.parametrize(("length_px", "seed", "poses", "following"), BLUR_SET_DRAWS)
def test_the_draws_of_the_blur_set_are_what_they_were(
    length_px: float, seed: int, poses: list[tuple[float, ...]], following: tuple[float, ...]
) -> None:
    generator = seeded(seed)
    spec = BlurSpec(length_px=(length_px, length_px), zoom_px=0.0, sharp_share=0.0)
    trajectory = random_trajectories(1, spec, generator)[0, [0, 12, 24], :3]
    np.testing.assert_allclose(trajectory.numpy(), poses, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(torch.randn(2, generator=generator).numpy(), following, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1 << 30), st.floats(0, 500), st.floats(0, 2 * math.pi))
def test_max_shift_bounds_how_far_any_point_is_displaced(seed: int, reach_px: float, angle: float) -> None:
    trajectory = random_trajectories(1, BlurSpec(roll_px=40.0, zoom_px=60.0), seeded(seed))
    point = complex(reach_px * math.cos(angle), reach_px * math.sin(angle))
    assert displacements(trajectory[0], point).max() <= max_shift_px(trajectory, reach_px) + 1e-3


def test_max_shift_is_no_more_than_it_must_be() -> None:
    trajectory = torch.tensor([[(3.0, -4.0, 0.0, 0.0), (-3.0, 4.0, 0.0, 0.0)]])
    assert max_shift_px(trajectory, 1000.0) == 5
    outward = torch.tensor([[(0.0, 0.0, 0.0, math.log(1.1))]])
    assert max_shift_px(outward, 99.0) == 10


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1 << 30), st.floats(0, 2000), st.floats(0, 2 * math.pi), st.floats(0.5, 30))
def test_a_limited_trajectory_displaces_no_point_further(
    seed: int, reach_px: float, angle: float, bound_px: float
) -> None:
    whole = random_trajectories(1, BlurSpec(roll_px=40.0, zoom_px=90.0), seeded(seed))[0]
    shrunk = limited(whole, reach_px=reach_px, bound_px=bound_px)
    point = complex(reach_px * math.cos(angle), reach_px * math.sin(angle))
    assert displacements(shrunk, point).max() <= bound_px + 1e-3
    share = (shrunk / whole)[whole != 0]
    assert float(share.max() - share.min()) < 1e-4
    if max_shift_px(whole[None], reach_px) <= bound_px:
        assert torch.equal(shrunk, whole)
