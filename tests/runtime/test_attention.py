"""Attention as a setting: what names it, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msan_runtime.attention import DEFAULT_ATTENTION, GLOBAL, Attention, AttentionError


def test_global_has_no_window() -> None:
    assert Attention.parse("global") == Attention() == GLOBAL
    assert GLOBAL.window_px is GLOBAL.window_tokens is None
    assert str(GLOBAL) == "global"


@given(st.integers(2, 255))
def test_a_window_is_read_as_it_is_written(side: int) -> None:
    attention = Attention.parse(f"window:{8 * side}")
    assert (attention.window_px, attention.window_tokens) == (8 * side, side)
    assert Attention.parse(str(attention)) == attention


def test_a_window_without_a_size_is_the_default_and_one_and_a_half_of_the_papers_crops() -> None:
    assert Attention.parse("window") == DEFAULT_ATTENTION == Attention(window_px=256 * 3 // 2)


@pytest.mark.parametrize(
    "text", ["", "Global", "local", "window:", "window:0192", "window:-8", "window: 192", "window:192 ", "window:١٩٢"]
)
def test_other_names_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(AttentionError, match=r"global, window or window:SIZE"):
        Attention.parse(text)


@pytest.mark.parametrize("size", [0, 8, 100, 2048, 99992, True, "192"])
def test_windows_of_another_size_are_refused_with_the_bounds(size: object) -> None:
    with pytest.raises(AttentionError, match=rf"multiple of 8 from 16 to 2040 pixels, not {size!r}"):
        Attention(window_px=size)  # pyright: ignore[reportArgumentType]
