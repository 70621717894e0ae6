"""Values on the command line: sizes in pixels, amounts of memory, times."""

from __future__ import annotations

import re

import typer

__all__ = ["bytes_from_text", "seconds_from_text", "size_from_text"]

UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "kib": 2**10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 2**20,
    "g": 10**9,
    "gb": 10**9,
    "gib": 2**30,
    "t": 10**12,
    "tb": 10**12,
    "tib": 2**40,
}


def size_from_text(text: str) -> tuple[int, int]:
    """(height, width) of a text like ``512x768``.

    Raises:
        typer.BadParameter: if it is none.
    """
    match = re.fullmatch(r"(\d{1,6})[x×X](\d{1,6})", text.strip(), re.ASCII)
    if match is None or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise typer.BadParameter(f"{text!r} is no size. Write HEIGHTxWIDTH in pixels, like 512x768")
    return int(match[1]), int(match[2])


def bytes_from_text(text: str) -> int:
    """The number of bytes of a text like ``2GiB``, ``500MB`` or ``1.5G``.

    Raises:
        typer.BadParameter: if it is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]{0,3})", text.strip().lower(), re.ASCII)
    size_bytes = round(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if size_bytes < 1:
        raise typer.BadParameter(f"{text!r} is no amount of memory. Write one like 2GiB or 500MB")
    return size_bytes


def seconds_from_text(text: str) -> float:
    """Seconds of a text like ``83.5``, ``1:23.5`` or ``0:01:23.5``.

    Raises:
        typer.BadParameter: if it is none.
    """
    match = re.fullmatch(r"(?:(?:(\d{1,4}):)?([0-5]?\d):)?(\d{1,7}(?:\.\d{1,9})?)", text.strip(), re.ASCII)
    if match is None or (match[2] is not None and float(match[3]) >= 60):
        raise typer.BadParameter(f"{text!r} is no time. Write seconds, like 83.5, or HH:MM:SS.mmm")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
