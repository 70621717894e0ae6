"""From sharp crops to degraded ones: seeds, batches, margins, noise, JPEG, and what is drawn for them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from msan.degradation.blur import BlurError, BlurSpec, blur_along
from msan.degradation.degrade import (
    Degradation,
    apply_degradations,
    degrade,
    degrade_picture,
    draw_degradation,
    margin_px,
)
from msan.degradation.jpeg import JpegSpec

STILL = BlurSpec(
    length_px=(0, 0), roll_px=0, zoom_px=0, noise_levels=0, sharp_share=0, instants=2, moving_share=0, jpeg_share=0
)
BUSY = BlurSpec(length_px=(2.0, 9.0), instants=9, moving_share=0.6, jpeg_share=0.5)


def noise_crops(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def smooth_crops(height: int, width: int) -> Tensor:
    """1×3×height×width of waves 13 to 30 px long."""
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(down * a + right * b) for a, b in ((0.4, 0.1), (-0.1, 0.4), (0.2, 0.1))]
    return (torch.stack(waves)[None] * 255).to(torch.uint8)


def drawn(spec: BlurSpec, seeds: Sequence[int]) -> list[Degradation]:
    return [draw_degradation(seed, spec) for seed in seeds]


def levels(picture: Tensor) -> Tensor:
    assert picture.dtype == torch.float32
    rounded = (picture * 255).round()
    assert float((picture * 255 - rounded).abs().max()) < 1e-4
    assert 0 <= float(rounded.min()) <= float(rounded.max()) <= 255
    return rounded


@pytest.mark.parametrize(("side", "count"), [(40, 4), (23, 20)])
def test_a_picture_is_to_the_bit_the_same_in_any_batch(side: int, count: int) -> None:
    margin = margin_px(BUSY)
    crops = noise_crops(count, side + 2 * margin, side + 2 * margin)
    offsets = torch.randn((count, 2), generator=torch.Generator().manual_seed(1)) * 300
    seeds = [6 + index * index for index in range(count)]
    kinds = {(bool(one.regions), one.jpeg is not None) for one in drawn(BUSY, seeds)}
    assert len(kinds) >= 3
    together = degrade(crops, seeds, BUSY, margin_px=margin, offset_px=offsets)
    assert together.shape == (count, 3, side, side)
    torch.manual_seed(5)
    for index in range(count):
        one = slice(index, index + 1)
        alone = degrade(crops[one].clone(), [seeds[index]], BUSY, margin_px=margin, offset_px=offsets[one])
        assert torch.equal(together[one], alone)
    order = torch.arange(count - 1, -1, -1)
    again = degrade(crops[order], [seeds[i] for i in order], BUSY, margin_px=margin, offset_px=offsets[order])
    assert torch.equal(again[order], together)


def test_other_seeds_and_offsets_give_other_pictures() -> None:
    spec = replace(STILL, length_px=(6.0, 6.0), roll_px=4.0, zoom_px=4.0, instants=7)
    crops = noise_crops(1, 60, 60).expand(4, 3, 60, 60)
    offsets = torch.tensor([[0.0, 0.0], [0.0, 0.0], [200.0, 0.0], [0.0, 200.0]])
    made = degrade(crops, [1, 2, 1, 1], spec, margin_px=20, offset_px=offsets)
    assert len({one.numpy().tobytes() for one in made}) == 4
    assert torch.equal(degrade(crops[:1], [1], spec, margin_px=20), made[:1])


@settings(deadline=None, max_examples=15)
@given(st.integers(0, (1 << 63) - 1), st.floats(0, 30), st.booleans(), st.integers(1, 40), st.integers(1, 40))
def test_any_picture_comes_out_in_range_on_the_8_bit_grid(
    seed: int, noise_levels: float, jpeg: bool, height: int, width: int
) -> None:
    spec = BlurSpec(
        length_px=(0.0, 30.0), instants=5, noise_levels=noise_levels, moving_share=1, jpeg_share=float(jpeg)
    )
    made = degrade(noise_crops(1, height + 6, width + 6, seed % 1000), [seed], spec, margin_px=3)
    assert made.shape == (1, 3, height, width)
    levels(made)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1 << 30), st.integers(0, 5), st.floats(0, 1))
def test_without_motion_noise_and_jpeg_the_picture_stays_as_it_is(seed: int, margin: int, moving_share: float) -> None:
    crops = noise_crops(2, 24, 31, seed)
    made = degrade(crops, [seed, seed + 1], replace(STILL, moving_share=moving_share), margin_px=margin)
    inner = crops[:, :, margin : 24 - margin, margin : 31 - margin]
    assert torch.equal(levels(made), inner.float())


def test_blur_is_that_of_the_drawn_trajectory() -> None:
    spec = replace(STILL, length_px=(8.0, 8.0), roll_px=3.0, zoom_px=3.0, instants=9)
    crops, offsets = noise_crops(3, 70, 70), torch.tensor([[0.0, 0.0], [90.0, -40.0], [-7.0, 60.0]])
    made = degrade(crops, [4, 5, 6], spec, margin_px=margin_px(spec), offset_px=offsets)
    trajectories = torch.stack([one.trajectory for one in drawn(spec, [4, 5, 6])])
    expected = blur_along(crops.float() / 255, trajectories, margin_px=margin_px(spec), offset_px=offsets)
    assert float((made - expected).abs().max()) <= 0.501 / 255


@pytest.mark.parametrize("offset", [(0.0, 0.0), (900.0, -1200.0), (9000.0, 0.0)])
@pytest.mark.parametrize("lever_px", [0.0, 2.0, 12.0])
def test_no_blur_looks_beyond_the_margin(offset: tuple[float, float], lever_px: float) -> None:
    """What lies beyond it makes no difference, however far from the picture's centre the crop is."""
    spec = BlurSpec(
        length_px=(12.0, 12.0),
        roll_px=lever_px,
        zoom_px=lever_px,
        noise_levels=0,
        moving_share=0.7,
        jpeg_share=0,
        instants=6,
    )
    margin, beyond, seeds = margin_px(spec), 9, range(6)
    wide = noise_crops(6, 30 + 2 * (margin + beyond), 34 + 2 * (margin + beyond))
    crops = wide[:, :, beyond:-beyond, beyond:-beyond]
    offsets = torch.tensor([offset]).expand(6, 2)
    made = levels(degrade(crops, seeds, spec, margin_px=margin, offset_px=offsets))
    with_more = levels(degrade(wide, seeds, spec, margin_px=margin + beyond, offset_px=offsets))
    assert float((made - with_more).abs().max()) <= 1


def test_trajectories_are_shrunk_only_where_they_reach_beyond_the_margin() -> None:
    spec = replace(STILL, length_px=(6.0, 6.0), roll_px=8.0, zoom_px=8.0, instants=9)
    crops = smooth_crops(90, 90)
    free = apply_degradations(crops, drawn(spec, [3]), margin_px=25, offset_px=torch.tensor([[300.0, 0.0]]))
    near = degrade(crops, [3], spec, margin_px=25, offset_px=torch.tensor([[300.0, 0.0]]))
    assert torch.equal(near, free)
    far = torch.tensor([[20_000.0, 0.0]])
    assert not torch.equal(
        degrade(crops, [3], spec, margin_px=25, offset_px=far),
        apply_degradations(crops, drawn(spec, [3]), margin_px=25, offset_px=far),
    )


def test_light_is_averaged_and_not_levels() -> None:
    """A camera that spends half of the time on white and half on black gives half of the light: level 188."""
    edge = torch.zeros((1, 3, 20, 40), dtype=torch.uint8)
    edge[..., 20:] = 255
    trajectory = torch.zeros(2, 4)
    trajectory[:, 1] = torch.tensor([-6.0, 6.0])
    how = Degradation(trajectory=trajectory, regions=(), noise_levels=0.0, noise_seed=0, jpeg=None)
    made = levels(apply_degradations(edge, [how], margin_px=0))
    assert made[0, 0, 10, [5, 18, 22, 35]].tolist() == [0, 188, 188, 255]


def test_noise_has_the_drawn_strength_after_the_blur() -> None:
    drawings = [replace(draw_degradation(seed, STILL), noise_levels=2.0 + 4 * seed) for seed in range(3)]
    grey = torch.full((3, 3, 150, 150), 120, dtype=torch.uint8)
    made = levels(apply_degradations(grey, drawings, margin_px=5)) - 120
    for noise, how in zip(made, drawings, strict=True):
        # Rounding adds a variance of 1/12.
        assert float(noise.std()) == pytest.approx(math.hypot(how.noise_levels, 12**-0.5), rel=0.02)
        assert abs(float(noise.mean())) < how.noise_levels / 40
        assert abs(float(torch.corrcoef(noise.flatten(1))[0, 1])) < 0.04
        neighbours = torch.stack((noise[0, :, 1:].ravel(), noise[0, :, :-1].ravel()))
        assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.04
    assert abs(float(torch.corrcoef(made.flatten(1))[0, 1])) < 0.04


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_jpeg_comes_last_and_is_pillows(seed: int) -> None:
    with_jpeg = BlurSpec(length_px=(4.0, 4.0), instants=5, noise_levels=3.0, jpeg_share=1.0, jpeg_quality=(30, 90))
    picture = smooth_crops(64, 75)[0].permute(1, 2, 0).contiguous().numpy()
    uncompressed, _ = degrade_picture(picture, replace(with_jpeg, jpeg_share=0.0), seed)
    compressed, how = degrade_picture(picture, with_jpeg, seed)
    assert how.jpeg is not None
    file = io.BytesIO()
    subsampling = {"4:4:4": 0, "4:2:0": 2}[how.jpeg.subsampling]
    Image.fromarray(uncompressed).save(file, "JPEG", quality=how.jpeg.quality, subsampling=subsampling)
    with Image.open(file) as decoded:
        np.testing.assert_array_equal(np.array(decoded), compressed)
    assert np.abs(uncompressed.astype(float) - compressed).mean() > 0.5


def test_a_whole_picture_keeps_its_size_and_sees_its_edge_repeated() -> None:
    spec = replace(STILL, length_px=(9.0, 9.0), instants=9)
    flat_rows = np.arange(40, dtype=np.uint8)[:, None, None].repeat(50, 1).repeat(3, 2) * 5
    blurred, how = degrade_picture(flat_rows, spec, 2)
    assert blurred.shape == flat_rows.shape
    assert blurred.dtype == np.uint8
    padded = np.pad(flat_rows, ((20, 20), (20, 20), (0, 0)), mode="edge")
    in_it = apply_degradations(torch.from_numpy(padded).permute(2, 0, 1)[None], [how], margin_px=20)
    np.testing.assert_allclose(blurred, (in_it[0] * 255).permute(1, 2, 0).numpy(), atol=1)


def test_shares_and_ranges_are_kept() -> None:
    spec = BlurSpec(instants=3, noise_levels=4.0, jpeg_share=0.4, jpeg_quality=(71, 73), sharp_share=0.25)
    every = drawn(spec, range(400))
    files = [how.jpeg for how in every if how.jpeg is not None]
    assert len(files) / 400 == pytest.approx(0.4, abs=0.08)
    assert {file.quality for file in files} == {71, 72, 73}
    assert {file.subsampling for file in files} == {"4:4:4", "4:2:0"}
    assert {phase for file in files for phase in file.phase_px} == set(range(16))
    noise = torch.tensor([how.noise_levels for how in every])
    assert 0 <= float(noise.min()) < 0.1 < 3.9 < float(noise.max()) <= 4
    assert float(noise.mean()) == pytest.approx(2, abs=0.2)
    lengths = torch.stack([how.trajectory[:, :2].diff(dim=0).norm(dim=1).sum() for how in every])
    assert float((lengths < 0.5).float().mean()) == pytest.approx(0.25, abs=0.08)
    assert len({how.noise_seed for how in every}) == 400


def test_one_feature_does_not_disturb_the_draws_of_another() -> None:
    everything = BlurSpec(moving_share=1.0, jpeg_share=1.0)
    for seed in range(5):
        whole = draw_degradation(seed, everything)
        bare = draw_degradation(seed, replace(everything, moving_share=0.0, jpeg_share=0.0))
        assert bare.regions == ()
        assert bare.jpeg is None
        assert torch.equal(whole.trajectory, bare.trajectory)
        assert (whole.noise_levels, whole.noise_seed) == (bare.noise_levels, bare.noise_seed)
        assert draw_degradation(seed, replace(everything, moving_share=0.0)).jpeg == whole.jpeg
        quieter = draw_degradation(seed, replace(everything, noise_levels=0.0))
        assert torch.equal(quieter.regions[0].trajectory, whole.regions[0].trajectory)


def test_draws_are_not_those_of_a_generator_with_the_same_seed() -> None:
    """A caller may draw crops with a generator of the same seed: a blur must not follow from the crop's place."""
    spec = BlurSpec(noise_levels=1.0, instants=3)
    theirs = torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in range(200)])
    ours = torch.tensor([draw_degradation(seed, spec).noise_levels for seed in range(200)])
    for column in theirs.unbind(1):
        assert abs(float(torch.corrcoef(torch.stack((column, ours)))[0, 1])) < 0.25


def test_the_margin_grows_with_each_displacement() -> None:
    least = margin_px(STILL)
    assert least >= 1
    for longer in ({"length_px": (0.0, 20.0)}, {"roll_px": 5.0}, {"zoom_px": 5.0}):
        assert margin_px(replace(STILL, **longer)) >= least + 10


@pytest.mark.parametrize(
    ("crops", "seeds", "margin", "message"),
    [
        (torch.zeros(2, 3, 20, 20, dtype=torch.uint8), [1], 2, "2 crops need as many seeds, not 1"),
        (torch.zeros(1, 3, 20, 20), [1], 2, r"uint8 N×3×H×W, not torch.float32"),
        (torch.zeros(1, 4, 20, 20, dtype=torch.uint8), [1], 2, r"not torch.uint8 \(1, 4, 20, 20\)"),
        (torch.zeros(3, 20, 20, dtype=torch.uint8), [1], 2, r"\(3, 20, 20\)"),
        (torch.zeros(0, 3, 20, 20, dtype=torch.uint8), [], 2, r"\(0, 3, 20, 20\)"),
        (torch.zeros(1, 3, 20, 30, dtype=torch.uint8), [1], 10, "20×30 px are no larger than a margin of 10 px"),
    ],
)
def test_crops_that_do_not_fit_are_refused(crops: Tensor, seeds: list[int], margin: int, message: str) -> None:
    with pytest.raises(BlurError, match=message):
        degrade(crops, seeds, STILL, margin_px=margin)


def test_jpeg_spec_of_a_crop_has_a_phase_and_of_a_picture_none() -> None:
    spec = replace(STILL, jpeg_share=1.0)
    how = draw_degradation(1, spec)
    assert how.jpeg is not None
    assert how.jpeg.phase_px != (0, 0)
    _, whole = degrade_picture(np.zeros((16, 16, 3), np.uint8), spec, 1)
    assert whole.jpeg == JpegSpec(quality=how.jpeg.quality, subsampling=how.jpeg.subsampling)
