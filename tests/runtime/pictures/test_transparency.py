"""Colours under transparency: byte for byte in the result, and nowhere near the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError
from msan_runtime.image import Picture, read_picture, write_picture
from msan_runtime.pictures.transparency import fill_hidden

Noise = Callable[..., PictureArray]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_hidden_colours_come_out_byte_for_byte(suffix: str, mode: str, noise: Noise, tmp_path: Path) -> None:
    stored = noise(40, 30, len(mode))
    stored[5:20, 3:25, -1] = 0
    Image.fromarray(stored, mode).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    sharp = replace(read, pixels=255 - read.pixels)
    write_picture(tmp_path / f"b{suffix}", sharp)
    with Image.open(tmp_path / f"b{suffix}") as image:
        result = np.array(image.convert(mode))
    expected = np.where(stored[:, :, -1:] == 0, stored, 255 - stored)
    expected[:, :, -1] = stored[:, :, -1]
    assert np.array_equal(result, expected)


def test_hidden_colours_do_not_reach_the_network(tmp_path: Path) -> None:
    stored = np.full((32, 32, 4), 200, np.uint8)
    stored[8:24, 8:24] = (0, 255, 0, 0)
    Image.fromarray(stored).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png").pixels == 200).all()


def test_half_transparent_colours_are_left_alone(noise: Noise, tmp_path: Path) -> None:
    stored = noise(16, 16, 4)
    stored[:, :, 3] = np.maximum(stored[:, :, 3], 1)
    Image.fromarray(stored).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert np.array_equal(read.pixels, stored[:, :, :3])
    assert read.hidden is None


def test_an_invisible_picture_comes_out_as_it_went_in(noise: Noise, tmp_path: Path) -> None:
    stored = noise(7, 5, 4)
    stored[:, :, 3] = 0
    Image.fromarray(stored).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", replace(read, pixels=np.zeros_like(read.pixels)))
    with Image.open(tmp_path / "b.png") as image:
        assert np.array_equal(np.array(image), stored)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)
def test_hidden_pixels_get_the_colour_of_the_smallest_block_that_has_any(
    height: int, width: int, seed: int, share: float, dtype: type[Any]
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, (height, width, 3)).astype(dtype)
    alpha = (rng.random((height, width)) < share).astype(dtype)
    before, visible = pixels.copy(), alpha > 0
    hidden = fill_hidden(pixels, alpha)
    assert np.array_equal(pixels[visible], before[visible])
    if visible.all():
        assert hidden is None
        return
    assert hidden is not None
    assert np.array_equal(hidden, before[~visible])
    for y, x in np.argwhere(~visible)[:20] if visible.any() else []:
        size = 2
        while not visible[block := np.s_[y // size * size :, x // size * size :]][:size, :size].any():
            size *= 2
        seen = before[block][:size, :size][visible[block][:size, :size]].astype(float)
        # The mean of means of the four quarters, each rounded: it lies between the darkest and the lightest.
        assert (seen.min(axis=0) <= pixels[y, x]).all()
        assert (pixels[y, x] <= seen.max(axis=0)).all()
        if size == 2:
            assert np.abs(pixels[y, x] - seen.mean(axis=0)).max() <= 0.5


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_hidden_colours_of_16_bits_come_out_too(suffix: str, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 65536, (20, 30, 4), np.uint16)
    stored[3:9, :, 3] = 0
    cv2.imwrite(str(tmp_path / "a.png"), stored)
    read = read_picture(tmp_path / "a.png", deep=True)
    assert not np.array_equal(read.pixels[3:9], stored[3:9, :, [2, 1, 0]])
    write_picture(tmp_path / f"b{suffix}", read)
    again = read_picture(tmp_path / f"b{suffix}", deep=True)
    assert again.hidden is not None
    assert np.array_equal(again.hidden, stored[3:9, :, [2, 1, 0]].reshape(-1, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.zeros((4, 4), np.uint8)},
        {"pixels": np.zeros((4, 4, 3), np.float32)},
        {"alpha": np.zeros((4, 5), np.uint8)},
        {"alpha": np.zeros((4, 4), np.uint16)},
        {"alpha": np.ones((4, 4), np.uint8), "hidden": np.zeros((1, 3), np.uint8)},
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="must be uint8"):
        replace(Picture(pixels=np.zeros((4, 4, 3), np.uint8)), **changes)
