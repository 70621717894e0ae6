"""Moving regions: their masks, and pictures in which they are laid over a background that moves otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msan.degradation.blur import BlurSpec, frames_along
from msan.degradation.moving import MovingRegion, frames_with_regions, random_regions, region_mask
from msan.degradation.trajectories import random_trajectories

CPU = torch.device("cpu")
STILL = torch.zeros(5, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand((1, 3, height, width), generator=seeded(seed))


def pan(down: float, right: float, instants: int = 5) -> Tensor:
    """T×4: an even pan of this much from first to last, mean zero."""
    steps = torch.linspace(-0.5, 0.5, instants)
    return torch.stack((steps * down, steps * right, 0 * steps, 0 * steps), 1)


def disc(
    trajectory: Tensor, radius: float = 0.25, centre: tuple[float, float] = (0.5, 0.5), edge_px: float = 2.0
) -> MovingRegion:
    return MovingRegion(trajectory=trajectory, centre=centre, radius=radius, outline=(), edge_px=edge_px)


def mean_frame(linear: Tensor, camera: Tensor, regions: Sequence[MovingRegion], margin_px: int = 0) -> Tensor:
    frames = frames_along(linear, camera[None], margin_px=margin_px)
    seen = list(frames_with_regions(linear, frames, [regions], margin_px=margin_px))
    assert len(seen) == len(camera)
    return torch.stack(seen).mean(0)


def distances(height: int, width: int, down: float, right: float) -> Tensor:
    """From each pixel's centre to a point in px from the picture's corner."""
    rows, columns = torch.arange(height) + 0.5 - down, torch.arange(width) + 0.5 - right
    return torch.hypot(rows[:, None], columns[None])


def centroid(light: Tensor) -> tuple[float, float]:
    rows, columns = torch.arange(light.shape[0]), torch.arange(light.shape[1])
    return float((light.sum(1) * rows).sum() / light.sum()), float((light.sum(0) * columns).sum() / light.sum())


@pytest.mark.parametrize(("centre", "size"), [((0.5, 0.5), (40, 60)), ((0.3, 0.8), (61, 44))])
def test_a_mask_without_harmonics_is_a_disc_with_a_soft_edge(
    centre: tuple[float, float], size: tuple[int, int]
) -> None:
    region = disc(STILL, radius=0.25, centre=centre, edge_px=3.0)
    mask = region_mask(region, *size, margin_px=0, device=CPU)
    beyond = distances(*size, centre[0] * size[0], centre[1] * size[1]) - 0.25 * min(size)
    assert torch.equal(mask[beyond <= -1.51], torch.ones_like(mask[beyond <= -1.51]))
    assert not mask[beyond >= 1.51].any()
    edge = beyond.abs() < 1.4
    assert ((mask[edge] > 0) & (mask[edge] < 1)).all()
    assert float(mask[beyond.abs() < 0.1].mean()) == pytest.approx(0.5, abs=0.1)


def test_harmonics_shape_the_outline() -> None:
    ellipse_like = MovingRegion(trajectory=STILL, centre=(0.5, 0.5), radius=0.2, outline=(0j, 0.4 + 0j), edge_px=1.5)
    mask = region_mask(ellipse_like, 100, 100, margin_px=0, device=CPU)
    # The angle is counted from the right: longest there, by exp(0.4), and shortest downward.
    assert float(mask[50].sum()) == pytest.approx(2 * 20 * math.exp(0.4), abs=1)
    assert float(mask[:, 50].sum()) == pytest.approx(2 * 20 * math.exp(-0.4), abs=1)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1 << 30), st.integers(0, 12), st.integers(20, 50), st.integers(20, 50))
def test_the_margin_only_adds_to_a_mask(seed: int, margin_px: int, height: int, width: int) -> None:
    region = random_regions(BlurSpec(moving_share=1.0), seeded(seed))[0]
    mask = region_mask(region, height, width, margin_px=0, device=CPU)
    wider = region_mask(region, height + 2 * margin_px, width + 2 * margin_px, margin_px=margin_px, device=CPU)
    inner = wider[margin_px : margin_px + height, margin_px : margin_px + width]
    assert float((inner - mask).abs().max()) < 1e-4
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    assert float(mask.sum()) > 0


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1 << 30))
def test_at_pose_zero_regions_leave_the_picture_as_it_is(seed: int) -> None:
    sharp = picture(32, 40)
    regions = random_regions(BlurSpec(moving_share=1.0, length_px=(0.0, 0.0), roll_px=0, zoom_px=0), seeded(seed))
    seen = mean_frame(sharp, torch.zeros(25, 4), regions, margin_px=4)
    assert float((seen - sharp[:, :, 4:-4, 4:-4]).abs().max()) < 1e-5


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1 << 30))
def test_far_from_a_region_a_still_camera_sees_the_picture(seed: int) -> None:
    sharp = picture(64, 64)
    region = random_regions(BlurSpec(moving_share=1.0, length_px=(6.0, 6.0), instants=7), seeded(seed))[0]
    seen = mean_frame(sharp, torch.zeros(7, 4), [region])
    still = torch.stack(list(frames_along(sharp, torch.zeros(1, 7, 4)))).mean(0)
    mask = region_mask(region, 64, 64, margin_px=0, device=CPU)
    near = torch.nn.functional.max_pool2d(mask[None], 17, 1, 8)[0] > 0
    assert torch.equal(seen[0][:, ~near], still[0][:, ~near])
    assert float((seen - still).abs().max()) > 0.05


def test_deep_inside_a_region_its_own_motion_is_seen_and_outside_the_cameras() -> None:
    sharp, camera, own = picture(80, 80), pan(6, 0), pan(0, 8)
    seen = mean_frame(sharp, camera, [disc(own)])
    beyond = distances(80, 80, 40, 40) - 20
    for along, where in ((own, beyond < -7), (camera, beyond > 7)):
        alone = torch.stack(list(frames_along(sharp, along[None]))).mean(0)
        assert float((seen - alone)[0][:, where].abs().max()) < 1e-5


def test_beyond_a_regions_edge_its_share_of_the_time_is_its_share_of_the_light() -> None:
    reach, instants = 8.0, 81
    white_disc = (distances(64, 64, 32, 32) < 16).float().expand(1, 3, 64, 64)
    region = disc(pan(0, reach, instants), radius=17 / 64, edge_px=1.0)
    seen = mean_frame(white_disc, torch.zeros(instants, 4), [region])[0, 0, 32]
    from_edge = torch.arange(64) + 0.5 - (32 + 16)
    covered = ((reach / 2 - from_edge) / reach).clamp(0, 1)
    assert float((seen - covered)[from_edge > 1].abs().max()) < 0.05


def test_the_centre_of_a_region_stays_where_it_is() -> None:
    size = 96
    for seed in range(4):
        spec = BlurSpec(moving_share=1.0, length_px=(12.0, 12.0), roll_px=40.0, zoom_px=20.0)
        drawn = random_regions(spec, seeded(seed))[0]
        region = MovingRegion(
            trajectory=drawn.trajectory, centre=(0.5, 0.5), radius=0.15, outline=(), edge_px=drawn.edge_px
        )
        spot = torch.exp(-((distances(size, size, 48, 48) / 5) ** 2)).expand(1, 3, size, size)
        down, right = centroid(mean_frame(spot, torch.zeros(25, 4), [region])[0, 0])
        assert abs(down - 47.5) < 0.1
        assert abs(right - 47.5) < 0.1


def test_a_region_turns_about_its_own_centre() -> None:
    quarter = torch.tensor([[0.0, 0.0, math.pi / 2, 0.0]])
    sharp = picture(64, 64)
    region = disc(quarter, radius=0.2, centre=(16 / 64, 40 / 64))
    seen = mean_frame(sharp, torch.zeros(1, 4), [region])
    around = sharp[:, :, 16 - 10 : 16 + 10, 40 - 10 : 40 + 10]
    turned = torch.rot90(around, 1, (2, 3))
    inside = distances(20, 20, 10, 10) < 9
    assert float((seen[:, :, 6:26, 30:50] - turned)[0][:, inside].abs().max()) < 1e-3


def test_the_second_region_is_in_front_of_the_first() -> None:
    sharp, first, second = picture(60, 60), pan(6, 0), pan(0, 6)
    seen = mean_frame(sharp, STILL, [disc(first, radius=0.35), disc(second, radius=0.15)])
    beyond = distances(60, 60, 30, 30)
    for along, where in ((second, beyond < 9 - 5), (first, (beyond > 9 + 5) & (beyond < 21 - 5))):
        alone = torch.stack(list(frames_along(sharp, along[None]))).mean(0)
        assert where.any()
        assert float((seen - alone)[0][:, where].abs().max()) < 1e-5


def test_each_picture_of_a_batch_gets_its_own_regions() -> None:
    sharp = torch.cat([picture(48, 40, seed) for seed in range(4)])
    camera = random_trajectories(4, BlurSpec(instants=5), seeded(1))
    one, other, third = disc(pan(5, 0)), disc(pan(0, 7), centre=(0.2, 0.3)), disc(pan(-4, 4), radius=0.1)
    own: list[list[MovingRegion]] = [[one], [], [other, third], [third]]
    frames = frames_along(sharp, camera, margin_px=3)
    together = torch.stack(list(frames_with_regions(sharp, frames, own, margin_px=3)))
    for index, regions in enumerate(own):
        here = slice(index, index + 1)
        alone = frames_along(sharp[here], camera[here], margin_px=3)
        alone = torch.stack(list(frames_with_regions(sharp[here], alone, [regions], margin_px=3)))
        assert torch.equal(together[:, here], alone)


def test_the_share_of_moving_pictures_is_kept_with_one_or_two_regions_each() -> None:
    spec = BlurSpec(moving_share=0.3, instants=3, sharp_share=1.0, length_px=(4.0, 9.0))
    drawn = [random_regions(spec, seeded(seed)) for seed in range(500)]
    counts = [len(regions) for regions in drawn]
    assert set(counts) == {0, 1, 2}
    assert sum(count > 0 for count in counts) / 500 == pytest.approx(0.3, abs=0.06)
    assert counts.count(1) == pytest.approx(counts.count(2), rel=0.35)
    every = [region for regions in drawn for region in regions]
    # Regions move though the camera is at rest; each of its own size and place.
    lengths = torch.stack([region.trajectory[:, :2].diff(dim=0).norm(dim=1).sum() for region in every])
    assert 4 - 1e-3 <= float(lengths.min()) < float(lengths.max()) <= 9 + 1e-3
    downs, rights = zip(*(region.centre for region in every), strict=True)
    for spread, (least, most) in ((downs, (0, 1)), (rights, (0, 1)), ([r.radius for r in every], (0.08, 0.32))):
        assert least <= min(spread) < 0.9 * least + 0.1 * most
        assert 0.1 * least + 0.9 * most < max(spread) <= most
    assert len({region.outline for region in every}) == len(every)
    assert all(min(map(abs, region.outline)) > 0 for region in every)
