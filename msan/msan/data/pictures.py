"""Training pictures in memory or on disk: sharp photographs and real pairs, as uint8 tensors by index."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from msan.data.readers import DatasetError, Pair, read_pair
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MsanError
from msan_runtime.image import read_picture

__all__ = [
    "CacheName",
    "Fetched",
    "PairPictures",
    "PictureStore",
    "SharpPictures",
    "Source",
    "fits_in_memory",
    "large_enough",
]

CacheName = Literal["auto", "memory", "off"]

MEMORY_SHARE = 0.5
"""Share of the free memory that ``auto`` fills with decoded pictures."""


class Source(Protocol):
    """Pictures by index."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each picture."""
        ...

    def paths(self, index: int) -> tuple[Path, ...]:
        """The files of picture ``index``."""
        ...

    def load(self, index: int) -> tuple[Tensor, ...]:
        """Decode picture ``index`` to uint8 3×H×W tensors of one size: (sharp,) or (blurred, sharp).

        Raises:
            MsanError: if a file cannot be decoded, or the two differ in size.
        """
        ...

    def size_px(self, index: int) -> tuple[int, int]:
        """Height and width of picture ``index`` as it will be decoded, from the head of its file.

        Raises:
            DatasetError: if the file cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SharpPictures:
    """Sharp photographs, shrunk to ``long_side_px`` at most (0: never)."""

    files: Sequence[Path]
    long_side_px: int

    @property
    def names(self) -> list[str]:
        return [str(file) for file in self.files]

    def paths(self, index: int) -> tuple[Path, ...]:
        return (self.files[index],)

    def load(self, index: int) -> tuple[Tensor, ...]:
        rgb = Image.fromarray(read_picture(self.files[index]).pixels)
        height, width = self._shrunk_px(rgb.height, rgb.width)
        return (_tensor(np.array(rgb.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0))),)

    def size_px(self, index: int) -> tuple[int, int]:
        return self._shrunk_px(*_size_px(self.files[index]))

    def _shrunk_px(self, height: int, width: int) -> tuple[int, int]:
        scale = min(1.0, self.long_side_px / max(height, width)) if self.long_side_px else 1.0
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, kw_only=True)
class PairPictures:
    """Blurred pictures with their sharp partners."""

    pairs: Sequence[Pair]

    @property
    def names(self) -> list[str]:
        return [str(pair.blurred) for pair in self.pairs]

    def paths(self, index: int) -> tuple[Path, ...]:
        return self.pairs[index].blurred, self.pairs[index].sharp

    def load(self, index: int) -> tuple[Tensor, ...]:
        blurred, sharp = read_pair(self.pairs[index])
        return _tensor(blurred), _tensor(sharp)

    def size_px(self, index: int) -> tuple[int, int]:
        return _size_px(self.pairs[index].blurred)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A picture out of a store, and the bad ones that were passed over on the way to it: name to reason."""

    index: int
    pictures: tuple[Tensor, ...]
    bad: dict[str, str] = field(default_factory=dict[str, str])


class PictureStore:
    """Pictures of a source by index, kept in memory once ``preload`` was called.

    A picture that cannot be decoded is passed over for the next one, and named.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.names = list(source.names)
        self._kept: list[tuple[Tensor, ...] | MsanError | None] = [None] * len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def preload(self, on_picture: Callable[[int], None] | None = None) -> None:
        """Decode every picture into memory, in threads; ``on_picture`` hears how many are done."""
        with ThreadPoolExecutor() as pool:
            for index, kept in enumerate(pool.map(self._attempt, range(len(self)))):
                self._kept[index] = kept
                if on_picture is not None:
                    on_picture(index + 1)

    def fetch(self, index: int) -> Fetched:
        """Picture ``index``, or the next one that can be decoded.

        Raises:
            DatasetError: if none can.
        """
        bad: dict[str, str] = {}
        for turn in range(len(self)):
            at = (index + turn) % len(self)
            kept = self._kept[at]
            found = self._attempt(at) if kept is None else kept
            if not isinstance(found, MsanError):
                return Fetched(index=at, pictures=found, bad=bad)
            bad[self.names[at]] = str(found)
        raise DatasetError(f"none of {len(self)} pictures can be decoded. The first: {bad[self.names[index]]}")

    def fingerprint(self) -> str:
        """Eight hexadecimal digits a picture: of its files' names, sizes and first bytes, wherever its folder lies."""
        return "".join(f"{_checksum(self.source.paths(index)):08x}" for index in range(len(self)))

    def bytes_decoded(self) -> int:
        """Memory that all pictures take, estimated from the heads of at most 64 files, spread evenly."""
        spread = range(0, len(self), max(1, len(self) // 64))
        sizes = [height * width for index in spread for height, width in self._size_px(index)]
        mean = sum(sizes) / max(1, len(sizes))
        tensors = 2 if isinstance(self.source, PairPictures) else 1
        return round(3 * mean * tensors * len(self))

    def _size_px(self, index: int) -> list[tuple[int, int]]:
        try:
            return [self.source.size_px(index)]
        except DatasetError:
            return []

    def _attempt(self, index: int) -> tuple[Tensor, ...] | MsanError:
        try:
            return self.source.load(index)
        except MsanError as error:
            return error


def large_enough(source: Source, side_px: int) -> list[int]:
    """Indices of the pictures with no side under ``side_px``; files that cannot be read stay in, to be named in use."""

    def fits(index: int) -> bool:
        try:
            return min(source.size_px(index)) >= side_px
        except DatasetError:
            return True

    return [index for index in range(len(source.names)) if fits(index)]


def fits_in_memory(size_bytes: int) -> bool:
    """Whether decoded pictures of this size leave half of the free memory; true where that cannot be told."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return True
    return size_bytes <= MEMORY_SHARE * free


def _checksum(paths: Sequence[Path]) -> int:
    checksum = 0
    for path in paths:
        checksum = zlib.crc32(path.name.encode(), checksum)
        try:
            with path.open("rb") as file:
                checksum = zlib.crc32(str(path.stat().st_size).encode() + file.read(4096), checksum)
        except OSError:
            # It is named when it is to be decoded.
            continue
    return checksum


def _size_px(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _tensor(pixels: PictureArray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
