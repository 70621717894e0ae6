"""Synthetic blur: the sRGB curve, the average along a trajectory in linear light, and the numbers of a blur."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from msan.degradation.blur import BlurError, BlurSpec, blur_along, linear_from_srgb, srgb_from_linear
from msan.degradation.trajectories import max_shift_px, random_trajectories

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
    st.floats(0, 400),
)
def test_a_constant_picture_stays_constant_under_any_trajectory(
    colour: tuple[float, ...], size: tuple[int, int], seed: int, roll_px: float, zoom_px: float
) -> None:
    constant = torch.tensor(colour).reshape(1, 3, 1, 1).expand(1, 3, *size)
    spec = BlurSpec(length_px=(0.0, 40.0), roll_px=roll_px, zoom_px=zoom_px, instants=7)
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


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(st.floats(-6, 6), st.floats(-6, 6), st.floats(-3, 3), st.floats(-0.7, 0.7)),
    st.tuples(st.integers(5, 30), st.integers(5, 30)),
)
def test_a_pose_is_scipys_affine_transform(pose: tuple[float, ...], size: tuple[int, int]) -> None:
    sharp = picture(*size)
    down, right, roll, log_scale = pose
    matrix = math.exp(log_scale) * np.array([[math.cos(roll), math.sin(roll)], [-math.sin(roll), math.cos(roll)]])
    centre = (np.array(size) - 1) / 2
    offset = centre + np.array((down, right)) - matrix @ centre
    linear = iec_linear(sharp[0].double().numpy())
    # Replicated edges; bilinear.
    seen = [ndimage.affine_transform(c, matrix, offset.tolist(), order=1, mode="nearest") for c in linear]
    ours = iec_linear(blur_along(sharp, torch.tensor([[pose]]))[0].double().numpy())
    np.testing.assert_allclose(ours, np.stack(seen), rtol=0, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_an_even_pan_is_a_box_average_in_linear_light(axis: int) -> None:
    sharp, reach = picture(20, 26), 3
    steps = torch.arange(-reach, reach + 1.0)
    trajectory = torch.zeros(1, 2 * reach + 1, 4)
    trajectory[0, :, axis] = steps
    box = ndimage.uniform_filter1d(iec_linear(sharp.double().numpy()), 2 * reach + 1, axis=2 + axis, mode="nearest")
    np.testing.assert_allclose(blur_along(sharp, trajectory).numpy(), iec_srgb(box), rtol=0, atol=1e-4)


def test_a_trajectory_without_scale_has_scale_one() -> None:
    sharp = picture(12, 15, count=2)
    trajectories = random_trajectories(2, BlurSpec(zoom_px=0.0, instants=5), seeded())
    assert torch.equal(blur_along(sharp, trajectories), blur_along(sharp, trajectories[:, :, :3]))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (30, 5), (25, 61), (63, 0)])
def test_a_crop_blurred_at_its_offset_is_the_crop_of_the_blurred_picture(top: int, left: int) -> None:
    height, width, side, margin = 100, 120, 37, 12
    whole = smooth_picture(height, width)
    trajectory = torch.tensor([[(-3.0, 1.0, -0.04, 0.03), (0.3, -1.7, 0.02, -0.01), (2.6, 0.5, 0.03, -0.04)]])
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
    trajectories = random_trajectories(3, BlurSpec(roll_px=20.0, zoom_px=20.0), seeded(2))
    offsets = torch.tensor([[0.0, 0.0], [30.0, -50.0], [-7.0, 9.0]])
    together = blur_along(sharp, trajectories, margin_px=2, offset_px=offsets)
    assert together.shape == (3, 3, 20, 20)
    for i in range(3):
        one = slice(i, i + 1)
        alone = blur_along(sharp[one], trajectories[one], margin_px=2, offset_px=offsets[one])
        assert float((together[one] - alone).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length_px": (-1.0, 2.0)}, r"length_px .*\(-1.0, 2.0\)"),
        ({"length_px": (3.0, 2.0)}, r"length_px .*\(3.0, 2.0\)"),
        ({"length_px": (math.nan, 2.0)}, "length_px"),
        ({"length_px": (1.0, math.inf)}, "length_px"),
        ({"length_px": (1.0, 2.0, 3.0)}, "length_px"),
        ({"length_px": 7.0}, "length_px .* not 7.0"),
        ({"length_px": ("1", "2")}, "length_px"),
        ({"jpeg_quality": (0, 50)}, "jpeg_quality"),
        ({"jpeg_quality": (50, 101)}, "jpeg_quality"),
        ({"jpeg_quality": (60, 50)}, "jpeg_quality"),
        ({"jpeg_quality": (50.5, 60.5)}, "jpeg_quality"),
        ({"instants": 1}, "instants .* not 1"),
        ({"instants": 2.5}, "instants .* not 2.5"),
        ({"instants": True}, "instants .* not True"),
        ({"sharp_share": 1.5}, "sharp_share .* not 1.5"),
        ({"sharp_share": -0.1}, "sharp_share .* not -0.1"),
        ({"moving_share": math.nan}, "moving_share .* not nan"),
        ({"jpeg_share": "often"}, "jpeg_share .* not 'often'"),
        ({"roll_px": -2.0}, "roll_px .* not -2.0"),
        ({"zoom_px": -2.0}, "zoom_px .* not -2.0"),
        ({"zoom_px": math.inf}, "zoom_px .* not inf"),
        ({"wander": -1.0}, "wander .* not -1.0"),
        ({"noise_levels": True}, "noise_levels .* not True"),
        ({"noise_levels": math.nan}, "noise_levels .* not nan"),
    ],
)
def test_impossible_blur_is_refused_with_the_value_seen(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BlurError, match=message) as caught:
        BlurSpec(**values)
    assert caught.value.exit_code == 2


def test_whole_numbers_do_for_fractions() -> None:
    spec = BlurSpec(length_px=(1, 18), roll_px=2, sharp_share=0, moving_share=1)
    assert BlurSpec(**dataclasses.asdict(spec)) == spec
