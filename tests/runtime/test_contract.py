"""The image contract: what is refused as a picture, and padding by edge replication."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msan_runtime.contract import check_picture, pad_to, round_up
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


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 4000, 3), (7, 5, 3)])
def test_pictures_of_any_size_are_accepted(shape: tuple[int, ...]) -> None:
    check_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ([[[0, 0, 0]]], "not list"),
        (None, "not NoneType"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
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
