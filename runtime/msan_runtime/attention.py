"""How far a network's attention looks: over the whole picture, or over overlapping windows of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from msan_runtime.errors import MsanError

__all__ = ["DEFAULT_ATTENTION", "GLOBAL", "TOKEN_PX", "Attention", "AttentionError"]

WINDOW_PX = 384
"""Side of windows unless another is asked for: 1.5 × the paper's training crops."""

TOKEN_PX = 8
"""A key of the attention modules stands for this many pixels of the picture each way."""

WINDOWS_PX = range(2 * TOKEN_PX, 255 * TOKEN_PX + 1, TOKEN_PX)
"""Sides that a window may have. Fused FP16 attention has been reported to give NaN above 65,504 keys: 255² is the
largest square below that."""


class AttentionError(MsanError):
    """A form of attention that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How far attention looks. A setting of inference: the weights are the same.

    Attributes:
        window_px: side in pixels, a multiple of 8 from 16 to 2040, of the square windows around blocks of half
            that side; ``None`` for the whole picture.

    Raises:
        AttentionError: for another window.
    """

    window_px: int | None = None

    def __post_init__(self) -> None:
        if self.window_px is not None and self.window_px not in WINDOWS_PX:
            raise AttentionError(
                f"an attention window is a multiple of {TOKEN_PX} from {WINDOWS_PX[0]} to {WINDOWS_PX[-1]} pixels, "
                f"not {self.window_px!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The attention that ``global``, ``window:SIZE`` or ``window``, of 384 pixels, names.

        Raises:
            AttentionError: for anything else.
        """
        if text == "global":
            return cls()
        if text == "window":
            return cls(window_px=WINDOW_PX)
        match = re.fullmatch(r"window:([1-9][0-9]{0,4})", text)
        if match is None:
            raise AttentionError(
                f"attention is global, window or window:SIZE in pixels, such as window:192, not {text!r}"
            )
        return cls(window_px=int(match[1]))

    @property
    def window_tokens(self) -> int | None:
        """Side of the windows in keys; ``None`` for the whole picture."""
        return None if self.window_px is None else self.window_px // TOKEN_PX

    def __str__(self) -> str:
        """``global`` or ``window:SIZE``: what :meth:`parse` reads."""
        return "global" if self.window_px is None else f"window:{self.window_px}"


GLOBAL = Attention()
"""Every position attends to the whole picture, or tile: what the network is trained with."""

DEFAULT_ATTENTION = Attention(window_px=WINDOW_PX)
"""What a checkpoint is exported, deployed and evaluated with unless another form is asked for
(docs/decisions/0004-attention-in-windows.md)."""
