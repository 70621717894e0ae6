"""What every backend is: a context manager that runs the network on one batch of equal tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from msan_runtime.contract import SIZE_MULTIPLE, Io, PictureArray
from msan_runtime.errors import ContractError

__all__ = ["Backend", "TileLimits", "check_tile_size", "check_tiles"]


@dataclass(frozen=True, kw_only=True)
class TileLimits:
    """Tile sizes that a backend takes, (height, width) in pixels, all multiples of 8.

    Attributes:
        smallest: both sides must be at least this.
        largest: both sides must be at most this; ``None`` for no bound.
        area_px: height·width must be at most this: it bounds the memory of one run.
        attention_px: area at which attention over the whole tile costs as much as all the rest; ``None`` if the
            cost grows with the area alone. Tells what tiles of a large picture are cheapest.
    """

    smallest: tuple[int, int] = (SIZE_MULTIPLE, SIZE_MULTIPLE)
    largest: tuple[int, int] | None = None
    area_px: int
    attention_px: int | None = None

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
    """``rtx``, ``tensorrt``, ``ort-cuda``, ``openvino-bf16``, ``openvino`` or ``ort-cpu``."""

    device: str
    """The device in words, for people."""

    limits: TileLimits

    io: Io = "uint8"
    """What tiles are: ``uint8``, or ``float32`` from 0 to 1."""

    precision: str = "fp32"
    """Of the graph or engine that it runs: ``fp32``, ``fp16``, ``int8`` or ``fp8``."""

    @abstractmethod
    def infer(self, tiles: PictureArray) -> PictureArray:
        """Deblur N×H×W×3 tiles of ``io`` within ``limits``; gives a new array of the same shape and type.

        Raises:
            OutOfMemoryError: if the device's memory does not suffice; smaller tiles can still be run.
            BackendError: if the device fails.
        """

    def infer_many(self, tiles: Iterable[PictureArray]) -> Iterator[PictureArray]:
        """:meth:`infer` for each batch, lazily and in order. A device may work on several at once.

        Closing the iterator early leaves the backend usable.

        Raises:
            OutOfMemoryError, BackendError: as :meth:`infer`; the iterator has then ended.
        """
        return map(self.infer, tiles)

    def batch_size(self, height: int, width: int) -> int:
        """How many tiles of that size :meth:`infer` runs faster in one batch than one by one, each to the same bits.

        1 if none are, or it was not measured. OpenVINO's results depend on the batch: it takes other kernels.
        """
        del height, width
        return 1

    def close(self) -> None:  # noqa: B027 - most backends have nothing to release
        """Release the device. The backend cannot be used after."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_tiles(tiles: PictureArray, limits: TileLimits) -> None:
    """Refuse N×H×W×3 tiles that the limits do not allow.

    Raises:
        ContractError: with the shape seen and the limit broken.
    """
    check_tile_size(tiles.shape[1], tiles.shape[2], limits)


def check_tile_size(height: int, width: int, limits: TileLimits) -> None:
    """Refuse a size of tiles that the limits do not allow.

    Raises:
        ContractError: with the size seen and the limit broken.
    """
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ContractError(f"tile sides must be multiples of {SIZE_MULTIPLE}, not {height}×{width}")
    small, large = limits.smallest, limits.largest
    if height < small[0] or width < small[1]:
        raise ContractError(f"a tile of {height}×{width} is under this backend's smallest {small[0]}×{small[1]}")
    if large is not None and (height > large[0] or width > large[1]):
        raise ContractError(f"a tile of {height}×{width} is over this backend's largest {large[0]}×{large[1]}")
    if height * width > limits.area_px:
        raise ContractError(f"a tile of {height}×{width} is over this backend's largest area, {limits.area_px} px")
