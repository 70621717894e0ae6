"""EXIF blocks: turned upright in place, given a resolution, taken out of a TIFF and put into one.

A block is kept byte for byte but for what must change, so that maker notes, which point into it by
its own offsets, stay whole.
"""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from msan_runtime.pictures.directories import EXIF_TAG, GPS_TAG, Directory, DirectoryReader, Entry, serialised

__all__ = [
    "DESCRIPTIVE_TAGS",
    "ORIENTATION",
    "PREFIX",
    "RESOLUTION_TAGS",
    "add_to_tiff",
    "block_from_directory",
    "descriptive",
    "directory_from_block",
    "dpi_from_entries",
    "resolution_entries",
    "upright_block",
    "with_resolution",
]

PREFIX = b"Exif\0\0"
"""What stands before the block in a JPEG."""

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x011B, 0x0128
RESOLUTION_TAGS = frozenset({X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT})
PIXEL_X, PIXEL_Y, FOCAL_PLANE_X, FOCAL_PLANE_Y = 0xA002, 0xA003, 0xA20E, 0xA20F
THUMBNAIL_OFFSET, THUMBNAIL_BYTES = 0x0201, 0x0202
NO_UNIT, INCH, CENTIMETRE = 1, 2, 3

DESCRIPTIVE_TAGS = frozenset(
    {
        0x010D,  # DocumentName
        0x010E,  # ImageDescription
        0x010F,  # Make
        0x0110,  # Model
        0x0131,  # Software
        0x0132,  # DateTime
        0x013B,  # Artist
        0x013C,  # HostComputer
        0x4746,  # Rating
        0x4749,  # RatingPercent
        0x8298,  # Copyright
        0x9C9B,  # XPTitle, and what else Windows writes: XPComment, XPAuthor, XPKeywords, XPSubject
        0x9C9C,
        0x9C9D,
        0x9C9E,
        0x9C9F,
        EXIF_TAG,
        GPS_TAG,
    }
)
"""Tags of a first directory that describe the picture; most others describe how a TIFF's pixels lie."""


def directory_from_block(block: bytes) -> Directory:
    """The first directory of a block.

    Raises:
        ValueError: if the block is damaged.
    """
    reader = DirectoryReader(io.BytesIO(block))
    return reader.read(reader.first)[0]


def dpi_from_entries(directory: Directory) -> tuple[float, float] | None:
    """Pixels an inch, (vertical, horizontal), that a first directory tells."""
    unit = directory.entries.get(RESOLUTION_UNIT)
    factor = {None: 1.0, INCH: 1.0, CENTIMETRE: 2.54}.get(unit.integer() if unit else None)
    values = [directory.entries[tag].numbers() for tag in (Y_RESOLUTION, X_RESOLUTION) if tag in directory.entries]
    if factor is None or len(values) != 2 or not all(numbers and numbers[0] > 0 for numbers in values):
        return None
    return values[0][0] * factor, values[1][0] * factor


def resolution_entries(dpi: tuple[float, float] | None) -> dict[int, Entry]:
    """The tags of a resolution (vertical, horizontal) in pixels an inch, or of square pixels of no size."""
    vertical, horizontal = (Entry.of(5, *_fraction(value)) for value in dpi or (1, 1))
    unit = Entry.of(3, INCH if dpi else NO_UNIT)
    return {X_RESOLUTION: horizontal, Y_RESOLUTION: vertical, RESOLUTION_UNIT: unit}


def upright_block(block: bytes, *, transposed: bool) -> bytes:
    """``block`` of a picture that was turned upright: orientation 1, sizes swapped if ``transposed``, no thumbnail.

    The thumbnail goes because it shows the picture as it was.

    Raises:
        ValueError: if the block is damaged.
    """
    reader = DirectoryReader(io.BytesIO(block))
    first, following = reader.read(reader.first)
    edited = bytearray(block)
    if ORIENTATION in first.entries:
        position = first.entries[ORIENTATION].position
        edited[position : position + 12] = struct.pack(f"{reader.order}HHIHH", ORIENTATION, 3, 1, 1, 0)
    if transposed:
        inner = first.inner.get(EXIF_TAG, Directory(entries={}))
        _swap_values(edited, first, X_RESOLUTION, Y_RESOLUTION)
        _swap_values(edited, inner, PIXEL_X, PIXEL_Y)
        _swap_values(edited, inner, FOCAL_PLANE_X, FOCAL_PLANE_Y)
    return _without_thumbnail(edited, reader, following) if following else bytes(edited)


def with_resolution(block: bytes | None, dpi: tuple[float, float]) -> bytes:
    """``block`` (or a new one) that tells ``dpi``; as it is if it does so already.

    If it must be told, the block is written anew.

    Raises:
        ValueError: if the block is damaged.
    """
    if block is None:
        return block_from_directory(Directory(entries=resolution_entries(dpi)))
    directory = directory_from_block(block)
    told = dpi_from_entries(directory)
    if told is not None and all(abs(ours - theirs) < 0.01 for ours, theirs in zip(dpi, told, strict=True)):
        return block
    merged = replace(directory, entries={**directory.entries, **resolution_entries(dpi)})
    return block_from_directory(merged)


def block_from_directory(directory: Directory) -> bytes:
    """A block, little-endian, whose first directory is ``directory``."""
    return b"II*\0\x08\0\0\0" + serialised(directory, 8)


def descriptive(directory: Directory) -> Directory:
    """What of a first directory describes the picture and can go into a file of another kind."""
    return Directory(
        entries={tag: entry for tag, entry in directory.entries.items() if tag in DESCRIPTIVE_TAGS},
        inner={tag: inner for tag, inner in directory.inner.items() if tag in DESCRIPTIVE_TAGS},
    )


def add_to_tiff(path: Path, added: Directory) -> None:
    """Add tags and inner directories to a little-endian TIFF: its directory is written anew at its end."""
    with path.open("r+b") as file:
        reader = DirectoryReader(file)
        own, _ = reader.read(reader.first)
        merged = Directory(entries={**own.entries, **added.entries}, inner={**own.inner, **added.inner})
        where = file.seek(0, 2)
        where += where % 2
        file.seek(where)
        file.write(serialised(merged, where))
        file.seek(reader.pointer_position)
        file.write(struct.pack("<I", where))


def _fraction(value: float) -> tuple[int, int]:
    """Numerator and denominator, of at most 10,000."""
    return Fraction(value).limit_denominator(10_000).as_integer_ratio()


def _swap_values(block: bytearray, directory: Directory, one: int, other: int) -> None:
    if one not in directory.entries or other not in directory.entries:
        return
    values = [slice(directory.entries[tag].position + 2, directory.entries[tag].position + 12) for tag in (one, other)]
    block[values[0]], block[values[1]] = block[values[1]], block[values[0]]


def _without_thumbnail(block: bytearray, reader: DirectoryReader, second: int) -> bytes:
    """Unlink the second directory, and blank the JPEG that it points to."""
    try:
        entries = reader.read(second, (THUMBNAIL_OFFSET, THUMBNAIL_BYTES))[0].entries
    except ValueError:
        entries = {}
    where, size = (entries[tag].integer() if tag in entries else None for tag in (THUMBNAIL_OFFSET, THUMBNAIL_BYTES))
    if where and size and block.startswith(b"\xff\xd8", where) and where + size <= len(block):
        block[where : where + size] = bytes(size)
        if where + size == len(block):
            del block[where:]
    count = struct.unpack_from(f"{reader.order}H", block, reader.first)[0]
    struct.pack_into(f"{reader.order}I", block, reader.first + 2 + 12 * count, 0)
    return bytes(block)
