"""TIFF directories, which EXIF blocks consist of too: read entry by entry, written anew.

Source: TIFF 6.0, section 2; Exif 2.32, section 4.6. BigTIFF is read.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

__all__ = ["EXIF_TAG", "GPS_TAG", "Directory", "DirectoryReader", "Entry", "serialised"]

EXIF_TAG, GPS_TAG, INTEROPERABILITY_TAG = 0x8769, 0x8825, 0xA005
POINTER_TAGS = frozenset({EXIF_TAG, GPS_TAG, INTEROPERABILITY_TAG})
"""Tags whose value is where another directory lies."""

BYTES_OF_KIND = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NUMBER_OF_KIND = {
    1: "u1",
    3: "u2",
    4: "u4",
    5: "u4",
    6: "i1",
    8: "i2",
    9: "i4",
    10: "i4",
    11: "f4",
    12: "f8",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
RATIONALS = frozenset({5, 10})

MAX_VALUE_BYTES = 64 * 1024 * 1024
"""Values of one directory larger than this together are no metadata of a picture."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tag of a directory.

    Attributes:
        kind: its type, by the number that TIFF gives it (2 text, 3 uint16, 4 uint32, 5 fraction, ...).
        count: of how many values it is.
        data: the values, little-endian.
        position: where in the file the entry itself lies.
    """

    kind: int
    count: int
    data: bytes
    position: int = -1

    @classmethod
    def of(cls, kind: int, *values: int) -> Entry:
        """An entry of whole numbers; of kind 5, numerators and denominators in turn."""
        data = np.array(values, f"<{NUMBER_OF_KIND[kind]}").tobytes()
        return cls(kind=kind, count=len(data) // BYTES_OF_KIND[kind], data=data)

    def numbers(self) -> list[float]:
        """The values; none of a kind without numbers, or where a denominator is 0."""
        if self.kind not in NUMBER_OF_KIND:
            return []
        flat = np.frombuffer(self.data, f"<{NUMBER_OF_KIND[self.kind]}").tolist()
        if self.kind not in RATIONALS:
            return flat
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return [above / below for above, below in pairs if below]

    def integer(self) -> int | None:
        """The first value as a whole number, or ``None``."""
        numbers = self.numbers()
        return int(numbers[0]) if numbers else None


@dataclass(frozen=True, kw_only=True)
class Directory:
    """Tags with their entries, and the directories that tags point to."""

    entries: Mapping[int, Entry]
    inner: Mapping[int, Directory] = field(default_factory=dict[int, "Directory"])


class DirectoryReader:
    """Reads the directories of a TIFF file or an EXIF block.

    Attributes:
        order: ``<`` or ``>``, as for :mod:`struct`.
        first: where the first directory lies.
        pointer_position: where in the file that offset is written.

    Raises:
        ValueError: if the file does not start like a TIFF.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = file.seek(0, 2)
        header = self._bytes(0, min(16, self.size_bytes))
        self.order = {b"II": "<", b"MM": ">"}.get(header[:2], "")
        version = self._unpacked("H", header[2:4])[0] if self.order and len(header) >= 8 else 0
        if version not in (42, 43) or (version == 43 and len(header) < 16):
            raise ValueError("no TIFF header")
        self.big = version == 43
        self.pointer_position = 8 if self.big else 4
        self.first = self._unpacked("Q", header[8:16])[0] if self.big else self._unpacked("I", header[4:8])[0]

    def read(self, offset: int, tags: Collection[int] | None = None) -> tuple[Directory, int]:
        """The directory at ``offset`` (of all tags, or of these) with its inner ones, and the next one's offset.

        What is of an unknown kind is left out, and what lies outside of the file.

        Raises:
            ValueError: if the directory itself does, or its values are of no sensible size.
        """
        entries, following = self._entries(offset, tags)
        inner: dict[int, Directory] = {}
        for tag in POINTER_TAGS & entries.keys():
            where = entries[tag].integer()
            del entries[tag]
            if where:
                with contextlib.suppress(ValueError):  # an inner directory that lies outside is none
                    inner[tag] = self._inner(where, nested=tag == EXIF_TAG)
        return Directory(entries=entries, inner=inner), following

    def count(self) -> int:
        """How many directories follow each other in the file."""
        seen: set[int] = set()
        offset = self.first
        while offset and offset not in seen:
            seen.add(offset)
            offset = self._entries(offset, ())[1]
        return len(seen)

    def _inner(self, offset: int, *, nested: bool) -> Directory:
        entries, _ = self._entries(offset, None)
        pointer = entries.pop(INTEROPERABILITY_TAG, None) if nested else None
        where = pointer.integer() if pointer else None
        inner = {INTEROPERABILITY_TAG: Directory(entries=self._entries(where, None)[0])} if where else {}
        return Directory(entries={tag: entries[tag] for tag in entries.keys() - POINTER_TAGS}, inner=inner)

    def _entries(self, offset: int, tags: Collection[int] | None) -> tuple[dict[int, Entry], int]:
        count_code, width, pointer = ("Q", 20, "Q") if self.big else ("H", 12, "I")
        start = offset + struct.calcsize(count_code)
        count = self._unpacked(count_code, self._bytes(offset, start - offset))[0]
        table = self._bytes(start, count * width + struct.calcsize(pointer))
        entries: dict[int, Entry] = {}
        budget_bytes = MAX_VALUE_BYTES
        for index in range(count):
            tag = self._unpacked("H", table[index * width : index * width + 2])[0]
            if tags is not None and tag not in tags:
                continue
            entry = self._entry(table[index * width : (index + 1) * width], start + index * width)
            if entry is not None:
                entries[tag] = entry
                budget_bytes -= len(entry.data)
            if budget_bytes < 0:
                raise ValueError("the values of a directory are too large")
        return entries, self._unpacked(pointer, table[count * width :])[0]

    def _entry(self, raw: bytes, position: int) -> Entry | None:
        pointer = "Q" if self.big else "I"
        inline_bytes = struct.calcsize(pointer)
        _, kind, count = self._unpacked("HH" + pointer, raw[: 4 + inline_bytes])
        size_bytes = count * BYTES_OF_KIND.get(kind, 0)
        if size_bytes == 0:
            return None
        value = raw[4 + inline_bytes :]
        if size_bytes > inline_bytes:
            where = self._unpacked(pointer, value)[0]
            if where + size_bytes > self.size_bytes or size_bytes > MAX_VALUE_BYTES:
                return None
            value = self._bytes(where, size_bytes)
        return Entry(kind=kind, count=count, data=self._little_endian(kind, value[:size_bytes]), position=position)

    def _little_endian(self, kind: int, data: bytes) -> bytes:
        if self.order == "<" or kind not in NUMBER_OF_KIND:
            return data
        return np.frombuffer(data, f">{NUMBER_OF_KIND[kind]}").astype(f"<{NUMBER_OF_KIND[kind]}").tobytes()

    def _bytes(self, offset: int, size_bytes: int) -> bytes:
        if offset + size_bytes > self.size_bytes:
            raise ValueError("a directory reaches beyond the end of the file")
        self._file.seek(offset)
        return self._file.read(size_bytes)

    def _unpacked(self, code: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack(self.order + code, data)


def serialised(directory: Directory, offset: int) -> bytes:
    """``directory`` and its inner ones as bytes of a little-endian file, to be put at ``offset`` (even).

    It is the last of its file: no other follows. Entries of 64-bit kinds are left out, which only
    BigTIFF knows.
    """
    entries = {tag: entry for tag, entry in directory.entries.items() if entry.kind < 16}
    table_bytes = 2 + 12 * (len(entries) + len(directory.inner)) + 4
    heap = bytearray()
    rows: dict[int, bytes] = {}
    for tag, entry in entries.items():
        value = entry.data.ljust(4, b"\0")
        if len(entry.data) > 4:
            value = struct.pack("<I", offset + table_bytes + len(heap))
            heap += entry.data + b"\0" * (len(entry.data) % 2)
        rows[tag] = struct.pack("<HHI", tag, entry.kind, entry.count) + value
    for tag, inner in directory.inner.items():
        where = offset + table_bytes + len(heap)
        rows[tag] = struct.pack("<HHII", tag, 4, 1, where)
        heap += serialised(inner, where)
    return struct.pack("<H", len(rows)) + b"".join(rows[tag] for tag in sorted(rows)) + bytes(4) + bytes(heap)
