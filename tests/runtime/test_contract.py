"""The image contract: what is refused as a picture, and padding by edge replication."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msan_runtime.contract import check_picture, pad_to, pixels_from_tiles, round_up, tiles_from_pixels
from msan_runtime.errors import ContractError


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_rounding_up_gives_the_least_multiple(size: int, multiple: int) -> None:
    rounded = round_up(size, multiple)
    assert rounded % multiple == 0
    assert size <= rounded < size + multiple


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), st.integers(0, 30))
def test_padding_repeats_the_last_row_and_column(height: int, width: int, down: int, right: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    rows = np.minimum(np.arange(height + down), height - 1)
    columns = np.minimum(np.arange(width + right), width - 1)
    assert np.array_equal(pad_to(picture, height + down, width + right), picture[rows][:, columns])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000, 3), (7, 5, 3)])
def test_pictures_of_any_size_are_accepted(shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    check_picture(np.zeros(shape, dtype))
    check_picture(np.ones(shape, dtype))


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_every_level_survives_the_way_through_a_float_graph(dtype: npt.DTypeLike, white: int) -> None:
    levels = np.arange(white + 1, dtype=dtype).reshape(1, 1, -1, 1)
    tiles = tiles_from_pixels(levels, "float32")
    assert tiles.dtype == np.float32
    np.testing.assert_allclose(tiles, levels.astype(np.float64) / white, atol=1e-7)
    back = pixels_from_tiles(tiles, levels.dtype)
    assert back.dtype == dtype
    assert np.array_equal(back, levels)


def test_results_beyond_the_range_are_clamped_and_halves_go_to_the_even_level() -> None:
    tiles = np.array([-0.1, 0.5 / 255, 1.5 / 255, 1.1], np.float32)
    assert pixels_from_tiles(tiles, np.dtype(np.uint8)).tolist() == [0, 0, 2, 255]


def test_what_needs_no_conversion_is_not_copied() -> None:
    eight_bits, floats = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)
    assert tiles_from_pixels(eight_bits, "uint8") is eight_bits
    assert tiles_from_pixels(floats, "float32") is floats
    assert pixels_from_tiles(floats, floats.dtype) is floats


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ([[[0, 0, 0]]], "not list"),
        (None, "not NoneType"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
        (np.zeros((4, 4, 3), np.int16), "int16"),
        (np.zeros((4, 4, 3), ">u2"), ">u2"),
        (np.full((4, 4, 3), 1.01, np.float32), "from 0 to 1, not from 1.0"),
        (np.full((4, 4, 3), -0.01, np.float32), "from 0 to 1, not from -0.0"),
        (np.full((4, 4, 3), np.nan, np.float32), "nan"),
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), r"\(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
    ],
)
def test_anything_else_is_refused_with_what_was_seen(picture: object, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_picture(picture)
