"""PNG files: their chunks read and written by us, their pixels by Pillow.

Source: PNG specification, third edition (W3C).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from PIL.PngImagePlugin import PngImageFile, PngInfo

from msan_runtime.errors import PictureError
from msan_runtime.pictures.metadata import Header, inflated, metadata_from_blocks
from msan_runtime.pictures.notes import note
from msan_runtime.pictures.picture import Coding, Picture
from msan_runtime.pictures.strips import image_from

__all__ = ["SIGNATURE", "chunk", "metadata_chunks", "open_png", "read_png_header", "write_png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEYWORD = b"XML:com.adobe.xmp"
RAW_EXIF_KEYWORDS = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
METRES_PER_INCH = 0.0254
COMPRESSION_LEVEL = 4
MAX_CHUNK_BYTES = 64 * 1024 * 1024
PIECE_BYTES = 1024 * 1024

KEPT_CHUNKS = frozenset({b"cHRM", b"cICP", b"gAMA", b"sRGB", b"iTXt", b"tEXt", b"zTXt"})
"""Chunks that hold for the result too: how its colours are meant, and texts."""

READ_CHUNKS = KEPT_CHUNKS | {b"IHDR", b"acTL", b"eXIf", b"iCCP", b"pHYs"}

Chunks = list[tuple[bytes, bytes]]


def open_png(file: BinaryIO) -> PngImageFile:
    """The file as Pillow's image; not through ``Image.open``, which obeys a setting of the whole process."""
    return PngImageFile(file)


def read_png_header(file: BinaryIO) -> Header:
    """What the chunks of a PNG say.

    Raises:
        PictureError: if the file ends before its last chunk, or its pixels are damaged.
    """
    chunks = _chunks(file)
    first = dict(reversed(chunks))  # of several of one type the first counts
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise PictureError("cannot be decoded: it does not start with its header")
    width, height, bits = struct.unpack(">IIB", first[b"IHDR"][:9])
    kept = [(kind, data) for kind, data in chunks if kind in KEPT_CHUNKS]
    packets = [data for kind, data in kept if kind == b"iTXt" and data.startswith(XMP_KEYWORD + b"\0")]
    raw = [data for kind, data in kept if kind in (b"tEXt", b"zTXt") and data.startswith(RAW_EXIF_KEYWORDS)]
    return Header(
        height=height,
        width=width,
        bits=bits,
        pictures=_pictures(first),
        metadata=metadata_from_blocks(
            icc=_profile(first.get(b"iCCP")),
            exif=first.get(b"eXIf") or (_raw_profile(raw[0]) if raw else None),
            xmp=_packet(packets[0]) if packets else None,
            dpi=_dpi(first.get(b"pHYs")),
        ),
        coding=Coding(
            format="PNG",
            lossless=True,
            chunks=tuple((kind, data) for kind, data in kept if data not in packets + raw),
        ),
    )


def write_png(path: Path, picture: Picture) -> None:
    """Encode a picture of 8 bits."""
    info = PngInfo()
    settings: dict[str, Any] = {"pnginfo": info, "compress_level": COMPRESSION_LEVEL}
    for kind, data in _repeated_chunks(picture):
        info.add(kind, data)
    if picture.icc:
        settings["icc_profile"] = picture.icc
    if picture.exif:
        settings["exif"] = picture.exif
    if picture.dpi:
        settings["dpi"] = picture.dpi[::-1]
    image_from(picture).save(path, "PNG", **settings)


def metadata_chunks(picture: Picture) -> bytes:
    """All that a PNG of ``picture`` tells besides its pixels, to be put behind its first chunk."""
    chunks: Chunks = []
    if picture.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    chunks += [(kind, data) for kind, data in _repeated_chunks(picture) if not (picture.icc and kind == b"sRGB")]
    if picture.dpi:
        vertical, horizontal = (round(value / METRES_PER_INCH) for value in picture.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", horizontal, vertical, 1)))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif))
    return b"".join(chunk(kind, data) for kind, data in chunks)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A whole chunk: length, type, content, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _repeated_chunks(picture: Picture) -> Chunks:
    """Chunks of the source that hold for the result, and its XMP packet."""
    chunks: Chunks = list(picture.coding.chunks) if picture.coding else []
    if picture.xmp:
        chunks.append((b"iTXt", XMP_KEYWORD + b"\0\0\0\0\0" + picture.xmp))
    return chunks


def _chunks(file: BinaryIO) -> Chunks:
    """Types and contents of the chunks in ``READ_CHUNKS``; of pixels, only the checksum is looked at."""
    found: Chunks = []
    size_bytes = file.seek(0, 2)
    position = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        file.seek(position)
        head = file.read(8)
        length = struct.unpack(">I", head[:4])[0] if len(head) == 8 else size_bytes
        if position + 12 + length > size_bytes:
            raise PictureError("cannot be decoded: it is cut short")
        kind = head[4:]
        if kind in READ_CHUNKS and length <= MAX_CHUNK_BYTES:
            found.append((kind, file.read(length)))
        elif kind == b"IDAT":
            _check_sum(file, kind, length)
        position += 12 + length
    if not found:
        raise PictureError("cannot be decoded: it has no header")
    return found


def _check_sum(file: BinaryIO, kind: bytes, length: int) -> None:
    """Compare a chunk with its checksum: Pillow does so for all that are needed, but not for pixels."""
    checksum = zlib.crc32(kind)
    while length > 0:
        part = file.read(min(length, PIECE_BYTES))
        checksum = zlib.crc32(part, checksum)
        length -= len(part)
    if file.read(4) != struct.pack(">I", checksum):
        raise PictureError("cannot be decoded: its pixels are damaged (their checksum is wrong)")


def _pictures(first: dict[bytes, bytes]) -> int:
    control = first.get(b"acTL", b"")
    return struct.unpack(">I", control[:4])[0] if len(control) >= 8 else 1


def _profile(content: bytes | None) -> bytes | None:
    if content is None:
        return None
    try:
        return inflated(content.partition(b"\0")[2][1:])
    except ValueError as error:
        note("a damaged colour profile is left out: %s", error)
        return None


def _raw_profile(content: bytes) -> bytes | None:
    """The EXIF block that ImageMagick wrote as text before PNG had a place for it: a name, a length, hex digits."""
    text = content.partition(b"\0")[2]
    try:
        digits = (text if text[:1] == b"\n" else inflated(text[1:])).split()[2:]
        return bytes.fromhex(b"".join(digits).decode())
    except ValueError as error:
        note("a damaged EXIF block is left out: %s", error)
        return None


def _packet(content: bytes) -> bytes | None:
    """The XMP packet in an iTXt chunk: keyword, two flags, language, translated keyword, text."""
    flags, rest = content[len(XMP_KEYWORD) + 1 :][:2], content[len(XMP_KEYWORD) + 3 :]
    text = rest.partition(b"\0")[2].partition(b"\0")[2]
    try:
        return inflated(text) if flags[:1] == b"\1" else text
    except ValueError as error:
        note("a damaged XMP packet is left out: %s", error)
        return None


def _dpi(content: bytes | None) -> tuple[float, float] | None:
    if content is None or len(content) != 9 or content[8] != 1:
        return None
    horizontal, vertical = struct.unpack(">II", content[:8])
    return (vertical * METRES_PER_INCH, horizontal * METRES_PER_INCH) if horizontal and vertical else None
