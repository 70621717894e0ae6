"""WebP files: their RIFF chunks read by us, their pixels by Pillow.

Source: WebP Container Specification; RFC 6386, section 9.1; WebP Lossless Bitstream, section 3.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from PIL.WebPImagePlugin import WebPImageFile

from msan_runtime.errors import PictureError
from msan_runtime.pictures.exif import with_resolution
from msan_runtime.pictures.metadata import Header, metadata_from_blocks, profile_space
from msan_runtime.pictures.notes import note
from msan_runtime.pictures.picture import Coding, EncodeOptions, Picture
from msan_runtime.pictures.strips import image_from

__all__ = ["open_webp", "read_webp_header", "write_webp"]

DEFAULT_QUALITY = 95
METHOD = 4
MAX_SIDE_PX = 16_383
READ_CHUNKS = frozenset({b"ICCP", b"EXIF", b"XMP "})
HEAD_BYTES = 10
"""Of the other chunks so much is read: it holds the picture's size."""


def open_webp(file: BinaryIO) -> WebPImageFile:
    """The file as Pillow's image, which it holds in memory whole."""
    return WebPImageFile(file)


def read_webp_header(file: BinaryIO) -> Header:
    """What the chunks of a WebP say.

    Raises:
        PictureError: if the file is cut short or holds no picture.
    """
    chunks = _chunks(file)
    first = dict(reversed(chunks))
    height, width = _size(first)
    kinds = [kind for kind, _ in chunks]
    return Header(
        height=height,
        width=width,
        pictures=max(1, kinds.count(b"ANMF")),
        metadata=metadata_from_blocks(
            icc=first.get(b"ICCP"), exif=first.get(b"EXIF"), xmp=first.get(b"XMP "), dpi=None
        ),
        coding=Coding(format="WEBP", lossless=b"VP8L" in kinds),
    )


def write_webp(path: Path, picture: Picture, options: EncodeOptions) -> None:
    """Encode a picture of 8 bits: lossless if its source was and no quality is asked for.

    Raises:
        PictureError: for a picture of 16 bits, or too large for the format.
    """
    if picture.deep:
        raise PictureError("WebP has 8 bits a channel, the picture 16. Choose .png or .tif")
    if max(picture.pixels.shape) > MAX_SIDE_PX:
        raise PictureError(f"WebP takes {MAX_SIDE_PX} px a side at most. Choose another format")
    lossless = picture.coding is not None and picture.coding.lossless and options.webp_quality is None
    settings: dict[str, Any] = {
        "lossless": lossless,
        "exact": True,  # keeps the colours under transparency
        "quality": 75 if lossless else options.webp_quality or DEFAULT_QUALITY,  # lossless: effort
        "method": METHOD,
    }
    image_from(picture).save(path, "WEBP", **settings, **_metadata(picture))


def _metadata(picture: Picture) -> dict[str, Any]:
    exif = with_resolution(picture.exif, picture.dpi) if picture.dpi else picture.exif
    icc = picture.icc
    if icc and picture.grey and profile_space(icc) == "GRAY":
        note("a grey colour profile is left out: WebP stores colours always")
        icc = None
    found = {"icc_profile": icc, "exif": exif, "xmp": picture.xmp}
    return {name: data for name, data in found.items() if data}


def _chunks(file: BinaryIO) -> list[tuple[bytes, bytes]]:
    """Types and contents (of pixels: the first bytes) of the chunks."""
    found: list[tuple[bytes, bytes]] = []
    file.seek(4)
    end = 8 + struct.unpack("<I", file.read(4))[0]
    if end > file.seek(0, 2) + 1:  # the last byte of padding is often missing
        raise PictureError("cannot be decoded: it is cut short")
    position = 12
    while position + 8 <= end:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if position + 8 + length > end:
            raise PictureError("cannot be decoded: a part of it is longer than the file")
        found.append((kind, file.read(length if kind in READ_CHUNKS else min(length, HEAD_BYTES))))
        position += 8 + length + length % 2
    return found


def _size(first: dict[bytes, bytes]) -> tuple[int, int]:
    """Height and width, from whichever of the three kinds of chunk tells them."""
    if len(canvas := first.get(b"VP8X", b"")) >= 10:
        return int.from_bytes(canvas[7:10], "little") + 1, int.from_bytes(canvas[4:7], "little") + 1
    if len(lossless := first.get(b"VP8L", b"")) >= 5:
        bits = int.from_bytes(lossless[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if len(lossy := first.get(b"VP8 ", b"")) >= 10:
        width, height = struct.unpack("<HH", lossy[6:10])
        return height & 0x3FFF, width & 0x3FFF
    raise PictureError("cannot be decoded: it holds no picture")
