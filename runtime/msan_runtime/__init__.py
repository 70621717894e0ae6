"""The lean MSAN runtime: deblurs pictures with a bundle, without PyTorch.

>>> from msan_runtime import Deblurrer
>>> with Deblurrer.load() as deblurrer:
...     sharp = deblurrer.deblur(blurred)  # uint8 (height, width, 3) in and out
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msan_runtime.deblur import Deblurrer
    from msan_runtime.errors import MsanError

__all__ = ["Deblurrer", "MsanError"]


def __getattr__(name: str) -> object:
    """Import on first use, so that ``import msan_runtime`` costs next to nothing."""
    if name == "Deblurrer":
        from msan_runtime.deblur import Deblurrer

        return Deblurrer
    if name == "MsanError":
        from msan_runtime.errors import MsanError

        return MsanError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
