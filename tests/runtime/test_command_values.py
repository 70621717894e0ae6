"""Values on the command line: what is taken, and what is refused with an example."""

from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from msan_runtime.commands.values import bytes_from_text, seconds_from_text, size_from_text


@given(height=st.integers(1, 999_999), width=st.integers(1, 999_999), between=st.sampled_from("xX×"))
def test_sizes_are_height_by_width(height: int, width: int, between: str) -> None:
    assert size_from_text(f"{height}{between}{width}") == (height, width)


@pytest.mark.parametrize("text", ["", "512", "512x", "x512", "0x8", "8x0", "-8x8", "8x8x3", "8.5x8", "٨x٨", "8 by 8"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="like 512x768"):
        size_from_text(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("2GiB", 2 * 1024**3),
        ("2 gib", 2 * 1024**3),
        ("500MB", 500_000_000),
        ("500M", 500_000_000),
        ("1.5G", 1_500_000_000),
        ("0.5KiB", 512),
        ("3 TiB", 3 * 1024**4),
        ("7k", 7000),
    ],
)
def test_amounts_of_memory(text: str, size_bytes: int) -> None:
    assert bytes_from_text(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "0", "-1G", "1e9", "2 XB", "1,5G", "1.G", "0.1"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="like 2GiB"):
        bytes_from_text(text)


@given(hours=st.integers(0, 99), minutes=st.integers(0, 59), milliseconds=st.integers(0, 59_999))
def test_times_are_hours_minutes_and_seconds(hours: int, minutes: int, milliseconds: int) -> None:
    text = f"{hours:02}:{minutes:02}:{milliseconds / 1000:06.3f}"
    assert seconds_from_text(text) == pytest.approx(hours * 3600 + minutes * 60 + milliseconds / 1000, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("83.5", 83.5), ("600", 600), ("1:23.5", 83.5), ("59:59", 3599)]
)
def test_times_are_also_seconds_or_minutes_and_seconds(text: str, seconds: float) -> None:
    assert seconds_from_text(text) == seconds


@pytest.mark.parametrize("text", ["", "1:60", "1:60:00", "-1", "1:2:3:4", "1m", "nan", "1e3", ":30", "1:"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"HH:MM:SS\.mmm"):
        seconds_from_text(text)
