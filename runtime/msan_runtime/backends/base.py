"""What every backend is: a context manager that runs the network on one batch of equal tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from msan_runtime.contract import SIZE_MULTIPLE, PictureArray
from msan_runtime.errors import ContractError

__all__ = ["Backend", "TileLimits", "check_tiles"]


@dataclass(frozen=True, kw_only=True)
class TileLimits:
    """Tile sizes that a backend takes, (height, width) in pixels, all multiples of 8.

    Attributes:
        smallest: both sides must be at least this.
        largest: both sides must be at most this; ``None`` for no bound.
        area_px: height·width must be at most this: it bounds the memory of one run.
    """

    smallest: tuple[int, int] = (SIZE_MULTIPLE, SIZE_MULTIPLE)
    largest: tuple[int, int] | None = None
    area_px: int

    def __post_init__(self) -> None:
        sides = (*self.smallest, *(self.largest or ()))
        if any(side < SIZE_MULTIPLE or side % SIZE_MULTIPLE for side in sides):
            raise ContractError(f"tile limits must be multiples of {SIZE_MULTIPLE}, not {sides}")
        if self.largest is not None and any(map(int.__lt__, self.largest, self.smallest)):
            raise ContractError(f"the largest tile {self.largest} is under the smallest tile {self.smallest}")
        if self.area_px < self.smallest[0] * self.smallest[1]:
            raise ContractError(f"a tile area of {self.area_px} px is under the smallest tile {self.smallest}")


class Backend(ABC):
    """Runs the network. One backend belongs to one thread at a time."""

    name: str
    """``rtx``, ``tensorrt``, ``ort-cuda`` or ``ort-cpu``."""

    device: str
    """The device in words, for people."""

    limits: TileLimits

    @abstractmethod
    def infer(self, tiles: PictureArray) -> PictureArray:
        """Deblur uint8 N×H×W×3 tiles within ``limits``; gives a new array of the same shape.

        Raises:
            BackendError: if the device fails.
        """

    def close(self) -> None:  # noqa: B027 - most backends have nothing to release
        """Release the device. The backend cannot be used after."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_tiles(tiles: PictureArray, limits: TileLimits) -> None:
    """Refuse tiles that the limits do not allow.

    Raises:
        ContractError: with the shape seen and the limit broken.
    """
    height, width = tiles.shape[1:3]
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ContractError(f"tile sides must be multiples of {SIZE_MULTIPLE}, not {height}×{width}")
    small, large = limits.smallest, limits.largest
    if height < small[0] or width < small[1]:
        raise ContractError(f"a tile of {height}×{width} is under this backend's smallest {small[0]}×{small[1]}")
    if large is not None and (height > large[0] or width > large[1]):
        raise ContractError(f"a tile of {height}×{width} is over this backend's largest {large[0]}×{large[1]}")
    if height * width > limits.area_px:
        raise ContractError(f"a tile of {height}×{width} is over this backend's largest area, {limits.area_px} px")
