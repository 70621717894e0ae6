"""Synthetic blur: the sRGB curve, the average along a trajectory in linear light, and the trajectories drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msan.blur import (
    BlurSpec,
    blur_along,
    linear_from_srgb,
    max_shift_px,
    random_trajectories,
    srgb_from_linear,
)

FloatArray = npt.NDArray[np.float64]


def iec_linear(srgb: FloatArray) -> FloatArray:
    """IEC 61966-2-1, decoding."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def iec_srgb(linear: FloatArray) -> FloatArray:
    """IEC 61966-2-1, encoding."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, *, count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, height, width), generator=seeded(seed))


def smooth_picture(height: int, width: int) -> Tensor:
    """1×3×height×width of waves some 12 px long."""
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(down * a + right * b) for a, b in ((0.5, 0.1), (-0.2, 0.5), (0.3, 0.4))]
    return torch.stack(waves)[None]


def path_lengths(trajectories: Tensor) -> Tensor:
    return trajectories[:, :, :2].diff(dim=1).norm(dim=2).sum(1)


def shifts(*poses: tuple[float, float]) -> Tensor:
    return torch.tensor([[(down, right, 0.0) for down, right in poses]])


def test_srgb_is_iec_61966_2_1() -> None:
    values = np.linspace(0, 1, 4097)
    tensor = torch.from_numpy(values)
    np.testing.assert_allclose(linear_from_srgb(tensor).numpy(), iec_linear(values), rtol=0, atol=1e-12)
    np.testing.assert_allclose(srgb_from_linear(tensor).numpy(), iec_srgb(values), rtol=0, atol=1e-12)


def test_all_8_bit_values_survive_the_way_to_linear_light_and_back() -> None:
    levels = torch.arange(256)
    back = srgb_from_linear(linear_from_srgb(levels.float() / 255))
    assert float((back * 255 - levels).abs().max()) < 1e-3


def test_values_under_zero_give_no_nan() -> None:
    below = torch.tensor([-1.0, -0.1, 0.0])
    assert torch.isfinite(linear_from_srgb(below)).all()
    assert torch.isfinite(srgb_from_linear(below)).all()


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(*[st.floats(0, 1, width=32)] * 3),
    st.tuples(st.integers(8, 24), st.integers(8, 24)),
    st.integers(0, 1 << 30),
    st.floats(0, 400),
)
def test_a_constant_picture_stays_constant_under_any_trajectory(
    colour: tuple[float, ...], size: tuple[int, int], seed: int, roll_px: float
) -> None:
    constant = torch.tensor(colour).reshape(1, 3, 1, 1).expand(1, 3, *size)
    spec = BlurSpec(length_px=(0.0, 40.0), roll_px=roll_px, instants=7)
    blurred = blur_along(constant, random_trajectories(1, spec, seeded(seed)))
    assert float((blurred - constant).abs().max()) < 1e-5


def test_whole_pixel_shifts_average_shifted_copies_in_linear_light() -> None:
    poses, margin = [(0, 0), (1, -2), (-3, 0), (2, 3), (2, 3)], 4
    sharp = picture(20, 17)
    blurred = blur_along(sharp, shifts(*poses), margin_px=margin)
    linear = iec_linear(sharp.double().numpy())
    # A pose says where each pixel looks: rolled by as much the other way.
    copies = [np.roll(linear, (-down, -right), (2, 3)) for down, right in poses]
    expected = iec_srgb(np.mean(copies, axis=0))[:, :, margin:-margin, margin:-margin]
    np.testing.assert_allclose(blurred.numpy(), expected, rtol=0, atol=1e-4)


def test_averaging_is_not_done_on_srgb_values() -> None:
    edge = torch.zeros((1, 3, 8, 8))
    edge[:, :, :, 4:] = 1
    blurred = blur_along(edge, shifts((0, 0), (0, 1)))
    # Half the light of white is level 188, not 128.
    assert float(blurred[0, 0, 4, 3] * 255) == pytest.approx(187.5, abs=0.1)


def test_outside_the_picture_lies_its_replicated_edge() -> None:
    sharp = picture(6, 5)
    blurred = blur_along(sharp, shifts((4, 0)))
    assert float((blurred[:, :, 2:] - sharp[:, :, 5:]).abs().max()) < 1e-4


@pytest.mark.parametrize("size", [(8, 8), (9, 16), (33, 21)])
def test_a_camera_at_rest_gives_the_picture(size: tuple[int, int]) -> None:
    sharp = picture(*size, count=2)
    assert float((blur_along(sharp, torch.zeros(2, 5, 3)) - sharp).abs().max()) < 1e-4
    inner = blur_along(sharp, torch.zeros(2, 5, 3), margin_px=3)
    assert float((inner - sharp[:, :, 3:-3, 3:-3]).abs().max()) < 1e-4


@pytest.mark.parametrize("side", [8, 9])
def test_a_quarter_roll_turns_the_picture_about_its_centre(side: int) -> None:
    sharp = picture(side, side)
    turned = blur_along(sharp, torch.tensor([[[0.0, 0.0, math.pi / 2]]]))
    assert float((turned - torch.rot90(sharp, 1, (2, 3))).abs().max()) < 1e-4


@pytest.mark.parametrize(("top", "left"), [(0, 0), (30, 5), (25, 61), (63, 0)])
def test_a_crop_blurred_at_its_offset_is_the_crop_of_the_blurred_picture(top: int, left: int) -> None:
    height, width, side, margin = 100, 120, 37, 12
    whole = smooth_picture(height, width)
    trajectory = torch.tensor([[(-3.0, 1.0, -0.08), (0.3, -1.7, 0.02), (2.6, 0.5, 0.06)]])
    assert max_shift_px(trajectory, math.hypot(height, width) / 2) < margin
    crop = whole[:, :, top : top + side, left : left + side]
    offset = torch.tensor([[top + side / 2 - height / 2, left + side / 2 - width / 2]])
    ours = blur_along(crop, trajectory, margin_px=margin, offset_px=offset)
    inner = (slice(top + margin, top + side - margin), slice(left + margin, left + side - margin))
    assert float((ours - blur_along(whole, trajectory)[:, :, *inner]).abs().max()) < 1e-4
    without_offset = blur_along(crop, trajectory, margin_px=margin)
    assert float((ours - without_offset).abs().max()) > 1e-2


def test_pictures_of_a_batch_have_their_own_trajectory_and_offset() -> None:
    sharp = picture(24, 24, count=3)
    trajectories = random_trajectories(3, BlurSpec(roll_px=20.0), seeded(2))
    offsets = torch.tensor([[0.0, 0.0], [30.0, -50.0], [-7.0, 9.0]])
    together = blur_along(sharp, trajectories, margin_px=2, offset_px=offsets)
    assert together.shape == (3, 3, 20, 20)
    for i in range(3):
        one = slice(i, i + 1)
        alone = blur_along(sharp[one], trajectories[one], margin_px=2, offset_px=offsets[one])
        assert float((together[one] - alone).abs().max()) < 1e-6


@pytest.mark.parametrize("length_px", [(0.0, 0.0), (1.0, 18.0), (7.0, 7.0)])
@pytest.mark.parametrize("instants", [2, 25])
def test_trajectories_have_mean_zero_and_a_length_within_bounds(length_px: tuple[float, float], instants: int) -> None:
    spec = BlurSpec(length_px=length_px, sharp_share=0, instants=instants)
    trajectories = random_trajectories(200, spec, seeded())
    assert trajectories.shape == (200, instants, 3)
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
    trajectories = random_trajectories(200, BlurSpec(sharp_share=1, roll_px=50), seeded())
    assert float(path_lengths(trajectories).max()) < 0.5
    assert not trajectories[:, :, 2].any()


def test_the_share_of_sharp_pictures_is_kept() -> None:
    spec = BlurSpec(length_px=(5.0, 18.0), sharp_share=0.25)
    sharp = path_lengths(random_trajectories(2000, spec, seeded())) < 0.5
    assert float(sharp.float().mean()) == pytest.approx(0.25, abs=0.04)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1 << 30), st.floats(0, 500), st.floats(0, 2 * math.pi))
def test_max_shift_bounds_how_far_any_point_is_displaced(seed: int, reach_px: float, angle: float) -> None:
    trajectory = random_trajectories(1, BlurSpec(roll_px=40.0), seeded(seed))
    point = complex(reach_px * math.cos(angle), reach_px * math.sin(angle))
    poses = trajectory[0].double().numpy()
    displaced = np.abs(point * np.exp(1j * poses[:, 2]) - point + poses[:, 0] + 1j * poses[:, 1])
    assert float(displaced.max()) <= max_shift_px(trajectory, reach_px) + 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length_px": (-1.0, 2.0)}, r"length_px .*\(-1.0, 2.0\)"),
        ({"length_px": (3.0, 2.0)}, r"length_px .*\(3.0, 2.0\)"),
        ({"length_px": (math.nan, 2.0)}, "length_px"),
        ({"instants": 1}, "instants .* not 1"),
        ({"sharp_share": 1.5}, "sharp_share .* not 1.5"),
        ({"sharp_share": -0.1}, "sharp_share .* not -0.1"),
        ({"roll_px": -2.0}, "roll_px .* not -2.0"),
        ({"wander": -1.0}, "wander .* not -1.0"),
        ({"noise_levels": math.nan}, "noise_levels .* not nan"),
    ],
)
def test_impossible_blur_is_refused_with_the_value_seen(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlurSpec(**values)
