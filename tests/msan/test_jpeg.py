"""JPEG in PyTorch against libjpeg, through Pillow."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msan.degradation.blur import BlurError
from msan.degradation.jpeg import JpegSpec, Subsampling, jpeg_round_trip

Levels = npt.NDArray[np.uint8]

PILLOW_SUBSAMPLING: dict[Subsampling, int] = {"4:4:4": 0, "4:2:0": 2}


def scene(height: int, width: int, seed: int = 0) -> Levels:
    """Shading, coloured shapes with sharp edges, and fine grain: the spectrum of a photograph, about."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    levels = np.stack([90 + 60 * np.sin(rows / a + columns / b) for a, b in ((50, 80), (90, 40), (30, 200))], 2)
    for _ in range(12):
        top, left, down, right = random.uniform(0, 1, 4) * (height, width, height / 2, width / 2)
        shape = (rows - top) ** 2 / (down + 2) ** 2 + (columns - left) ** 2 / (right + 2) ** 2 < 1
        levels[shape] = levels[shape] / 2 + random.uniform(0, 128, 3)
    return (levels + random.normal(0, 4, levels.shape)).clip(0, 255).astype(np.uint8)


def ours(pixels: Levels, spec: JpegSpec) -> Levels:
    decoded = jpeg_round_trip(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, spec)
    assert decoded.dtype == torch.float32
    levels = (decoded * 255).permute(1, 2, 0).numpy()
    assert np.abs(levels - levels.round()).max() < 1e-4
    return levels.round().astype(np.uint8)


def pillows(pixels: Levels, quality: int, subsampling: Subsampling) -> Levels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, "JPEG", quality=quality, subsampling=PILLOW_SUBSAMPLING[subsampling], optimize=False
    )
    return np.array(Image.open(file))


@pytest.mark.parametrize("size", [(128, 128), (97, 133), (50, 71), (16, 200)])
@pytest.mark.parametrize("subsampling", PILLOW_SUBSAMPLING)
@pytest.mark.parametrize("quality", [1, 10, 49, 50, 60, 75, 90, 95, 100])
def test_it_is_what_libjpeg_makes(quality: int, subsampling: Subsampling, size: tuple[int, int]) -> None:
    sharp = scene(*size)
    theirs = pillows(sharp, quality, subsampling)
    mine = ours(sharp, JpegSpec(quality=quality, subsampling=subsampling))
    np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(mine, sharp)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 100),
    st.sampled_from(["4:4:4", "4:2:0"]),
    st.tuples(st.integers(1, 40), st.integers(5, 40)),
    st.integers(0, 1 << 30),
)
def test_any_quality_and_size_is_what_libjpeg_makes(
    quality: int, subsampling: Subsampling, size: tuple[int, int], seed: int
) -> None:
    sharp = scene(*size, seed)
    mine = ours(sharp, JpegSpec(quality=quality, subsampling=subsampling))
    np.testing.assert_array_equal(mine, pillows(sharp, quality, subsampling))


@pytest.mark.parametrize("subsampling", PILLOW_SUBSAMPLING)
def test_noise_of_full_range_is_clipped_as_libjpeg_does(subsampling: Subsampling) -> None:
    noise = np.random.default_rng(1).integers(0, 2, (64, 64, 3)).astype(np.uint8) * 255
    for quality in (5, 40, 85):
        mine = ours(noise, JpegSpec(quality=quality, subsampling=subsampling))
        np.testing.assert_array_equal(mine, pillows(noise, quality, subsampling))


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (17, 17, 17), (255, 255, 255), (17, 17, 18), (40, 40, 71), (90, 61, 61), (0, 0, 255)]
)
@pytest.mark.parametrize("subsampling", PILLOW_SUBSAMPLING)
def test_one_colour_is_exactly_libjpegs(colour: tuple[int, int, int], subsampling: Subsampling) -> None:
    """Many of these have chroma that falls on a half."""
    flat = np.full((20, 23, 3), colour, np.uint8)
    for quality in (30, 60, 100):
        mine = ours(flat, JpegSpec(quality=quality, subsampling=subsampling))
        np.testing.assert_array_equal(mine, pillows(flat, quality, subsampling))


def test_halved_chroma_blurs_colour_and_not_brightness() -> None:
    """Red and blue of equal luma, pixel by pixel, become one colour; black and white stay apart."""
    red, blue = (150, 20, 20), (20, 45, 255)
    colours = np.array([red, blue] * 16, np.uint8)[None].repeat(32, 0)
    greys = np.array([(0, 0, 0), (255, 255, 255)] * 16, np.uint8)[None].repeat(32, 0)
    for sharp, keeps in ((colours, False), (greys, True)):
        mine = ours(sharp, JpegSpec(quality=100, subsampling="4:2:0")).astype(float)
        contrast = (
            np.abs(mine[:, ::2] - mine[:, 1::2]).mean() / np.abs(sharp[:, ::2] - sharp[:, 1::2].astype(float)).mean()
        )
        assert (contrast > 0.9) == keeps
        assert (contrast < 0.2) != keeps


def test_the_phase_moves_the_blocks() -> None:
    """A crop compressed at its phase is the crop of the compressed picture, but for blocks at its edge."""
    sharp = scene(96, 112)
    whole = ours(sharp, JpegSpec(quality=40, subsampling="4:2:0"))
    top, left = 21, 26
    crop = np.ascontiguousarray(sharp[top : top + 64, left : left + 64])
    in_phase = ours(crop, JpegSpec(quality=40, phase_px=(top % 16, left % 16)))
    assert in_phase.shape == crop.shape
    inner = (slice(16, 40), slice(16, 40))
    np.testing.assert_array_equal(in_phase[inner], whole[top:, left:][inner])
    out_of_phase = ours(crop, JpegSpec(quality=40))
    assert np.abs(out_of_phase[inner].astype(float) - whole[top:, left:][inner]).mean() > 1


def test_values_out_of_range_are_clipped_first() -> None:
    picture = torch.rand((3, 24, 24), generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    spec = JpegSpec(quality=80)
    assert torch.equal(jpeg_round_trip(picture, spec), jpeg_round_trip(picture.clamp(0, 1), spec))


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_off_the_scale_is_refused(quality: int) -> None:
    with pytest.raises(BlurError, match=f"1 to 100, not {quality}"):
        JpegSpec(quality=quality)


def test_a_phase_beyond_a_block_is_refused() -> None:
    with pytest.raises(BlurError, match=r"not \(0, 16\)"):
        JpegSpec(quality=50, phase_px=(0, 16))
