"""How a deblurrer is loaded, as plain values: the same in this process and on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msan_runtime.deblur import Deblurrer

__all__ = ["LoadOptions"]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What :meth:`msan_runtime.Deblurrer.load` is given, by the same names."""

    bundle: str = "msan-s"
    backend: str = "auto"
    tile: tuple[int, int] | None = None
    overlap_px: int | None = None
    memory_bytes: int | None = None
    rebuild: bool = True
    public_key: Path | None = None

    def load(self) -> Deblurrer:
        """The deblurrer.

        Raises:
            As :meth:`msan_runtime.Deblurrer.load`.
        """
        return Deblurrer.load(
            self.bundle,
            self.backend,
            tile=self.tile,
            overlap_px=self.overlap_px,
            memory_bytes=self.memory_bytes,
            rebuild=self.rebuild,
            public_key=self.public_key,
        )
