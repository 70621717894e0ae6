"""Names from outside as text that is nothing but text: what would command a terminal or turn a line is spelt out."""

from __future__ import annotations

import re

from msan_runtime.commands.screen import printable

__all__ = ["plain"]

TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Marks that turn the direction of what stands after them, the figures beside a name too."""


def plain(text: str) -> str:
    """``text`` with control characters, bytes that are no text, and marks of direction spelt out, like ``\\u202e``."""
    return TURNING.sub(lambda found: f"\\u{ord(found[0]):04x}", printable(text))
