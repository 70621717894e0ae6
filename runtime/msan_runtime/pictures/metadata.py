"""What a picture file tells besides its pixels, and how that changes when the picture is turned upright."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace

from msan_runtime.pictures.directories import Directory
from msan_runtime.pictures.exif import ORIENTATION, PREFIX, directory_from_block, dpi_from_entries, upright_block
from msan_runtime.pictures.notes import note
from msan_runtime.pictures.picture import Coding

__all__ = ["Header", "Metadata", "inflated", "metadata_from_blocks", "orientation_from", "profile_space", "upright"]

XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)([1-8])""")
MAX_INFLATED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of a file, as it is in there; the fields are those of ``Picture``.

    Attributes:
        orientation: 1 to 8, as EXIF counts: how the stored pixels must be turned.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    orientation: int = 1


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of its picture before the pixels are decoded.

    Attributes:
        height, width: as stored, in px.
        bits: of a channel, the most of any.
        integer: whether the values are unsigned whole numbers.
        pictures: how many the file holds.
        metadata, coding: see there.
    """

    height: int
    width: int
    bits: int = 8
    integer: bool = True
    pictures: int = 1
    metadata: Metadata
    coding: Coding


def metadata_from_blocks(
    *,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
) -> Metadata:
    """Metadata of a file that holds an EXIF block: it tells the orientation, and the resolution if nothing else does.

    A damaged block is left out, and that is logged.
    """
    block = exif.removeprefix(PREFIX) if exif else None
    directory = Directory(entries={})
    if block:
        try:
            directory = directory_from_block(block)
        except ValueError as error:
            note("a damaged EXIF block is left out: %s", error)
            block = None
    return Metadata(
        icc=icc or None,
        exif=block or None,
        xmp=xmp or None,
        dpi=dpi or dpi_from_entries(directory),
        orientation=orientation_from(directory, xmp),
    )


def orientation_from(directory: Directory, xmp: bytes | None) -> int:
    """The orientation, 1 to 8, that a first directory tells, else the XMP packet; 1 if none, or none that exists."""
    entry = directory.entries.get(ORIENTATION)
    if entry is not None:
        value = entry.integer()
        return value if value is not None and 1 <= value <= 8 else 1
    found = XMP_ORIENTATION.search(xmp or b"")
    return int(found.group(2)) if found else 1


def upright(metadata: Metadata) -> Metadata:
    """The metadata of the same picture turned upright."""
    transposed = metadata.orientation >= 5
    return replace(
        metadata,
        exif=upright_block(metadata.exif, transposed=transposed) if metadata.exif else None,
        xmp=XMP_ORIENTATION.sub(rb"\g<1>1", metadata.xmp) if metadata.xmp else None,
        dpi=metadata.dpi[::-1] if metadata.dpi and transposed else metadata.dpi,
        orientation=1,
    )


def inflated(data: bytes) -> bytes:
    """``data`` decompressed by zlib.

    Raises:
        ValueError: if it is damaged or larger than metadata can be.
    """
    decoder = zlib.decompressobj()
    try:
        result = decoder.decompress(data, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decoder.eof:
        raise ValueError("compressed metadata is cut or too large")
    return result


def profile_space(icc: bytes) -> str:
    """The colour space of an ICC profile: ``RGB``, ``GRAY``, ``CMYK``, ... (ICC.1, section 7.2.6)."""
    return icc[16:20].decode("latin-1").strip()
