"""JPEG files: what is kept of their segments, and how their compression is repeated."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from msan_runtime.errors import PictureError
from msan_runtime.pictures.exif import PREFIX
from msan_runtime.pictures.metadata import Header, metadata_from_blocks
from msan_runtime.pictures.notes import note
from msan_runtime.pictures.picture import Coding, EncodeOptions, JpegCoding, Picture, Subsampling
from msan_runtime.pictures.strips import image_from

__all__ = ["open_jpeg", "read_jpeg_header", "write_jpeg"]

DEFAULT_QUALITY = 95
SUBSAMPLINGS: dict[int, Subsampling] = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
XMP_EXTENSION_PREFIX = b"http://ns.adobe.com/xmp/extension/\0"
PHOTOSHOP_PREFIX = b"Photoshop 3.0\0"
MAX_SEGMENT_BYTES = 65_533


def open_jpeg(file: BinaryIO) -> JpegImageFile:
    """The file as Pillow's image; of a phone's file with several pictures, the first.

    Not through ``Image.open``, which checks the size against a setting of the whole process.
    """
    return JpegImageFile(file)


def read_jpeg_header(file: BinaryIO) -> Header:
    """What a JPEG says before its pixels."""
    image = open_jpeg(file)
    info = image.info
    dpi = info.get("dpi") if info.get("jfif_unit") in (1, 2) else None
    return Header(
        height=image.height,
        width=image.width,
        metadata=metadata_from_blocks(
            icc=info.get("icc_profile"),
            exif=info.get("exif"),
            xmp=info.get("xmp"),
            dpi=(dpi[1], dpi[0]) if dpi and min(dpi) > 0 else None,
        ),
        coding=Coding(format="JPEG", lossless=False, jpeg=_coding(image), segments=_kept_segments(image)),
    )


def write_jpeg(path: Path, picture: Picture, options: EncodeOptions) -> None:
    """Encode a picture of 8 bits without alpha.

    Raises:
        PictureError: for other pictures.
    """
    if picture.alpha is not None:
        raise PictureError("JPEG has no transparency. Choose .png, .webp or .tif")
    if picture.deep:
        raise PictureError("JPEG has 8 bits a channel, the picture 16. Choose .png or .tif")
    settings = _compression(picture, options) | _metadata(picture)
    image = image_from(picture)
    try:
        image.save(path, "JPEG", **settings)
    except OSError as error:
        # Pillow's buffer for progressive files is of a fixed size, which noise at the best quality overflows.
        if not settings["progressive"] or error.errno is not None:
            raise
        note("written without progressive scans: it compresses too badly for them")
        image.save(path, "JPEG", **settings | {"progressive": False})


def _coding(image: JpegImageFile) -> JpegCoding | None:
    """The compression of a grey or a YCbCr file; ``None`` of one whose components are others."""
    if image.mode not in ("L", "RGB") or image.info.get("adobe_transform") == 0:
        return None
    used = [image.layer[index][3] for index in range(min(image.layers, 2))]
    if any(table not in image.quantization for table in used):
        return None
    return JpegCoding(
        tables=tuple(tuple(image.quantization[table]) for table in used),
        subsampling=SUBSAMPLINGS.get(get_sampling(image), "4:4:4"),
        progressive=bool(image.info.get("progressive")),
    )


def _kept_segments(image: JpegImageFile) -> tuple[bytes, ...]:
    """Comments, IPTC and the rest of a long XMP packet, as they stand in the file."""
    kept: list[bytes] = []
    for name, data in image.applist:
        if name == "COM":
            kept.append(_segment(0xFE, data))
        elif name == "APP1" and data.startswith(XMP_EXTENSION_PREFIX):
            kept.append(_segment(0xE1, data))
        elif name == "APP13" and data.startswith(PHOTOSHOP_PREFIX):
            kept.append(_segment(0xED, data))
    return tuple(kept)


def _compression(picture: Picture, options: EncodeOptions) -> dict[str, Any]:
    """Pillow's settings: those asked for, else the source's, else the default."""
    source = picture.coding.jpeg if picture.coding else None
    settings: dict[str, Any] = {
        "subsampling": options.jpeg_subsampling or (source.subsampling if source else "4:4:4"),
        "progressive": source is not None and source.progressive,
    }
    fits = source is not None and (picture.grey or len(source.tables) > 1)
    if options.jpeg_quality is None and source is not None and fits:
        tables = source.tables[:1] if picture.grey else source.tables
        return settings | {"qtables": [list(table) for table in tables]}
    return settings | {"quality": options.jpeg_quality or DEFAULT_QUALITY}


def _metadata(picture: Picture) -> dict[str, Any]:
    segments = picture.coding.segments if picture.coding else ()
    settings: dict[str, Any] = {"icc_profile": picture.icc}
    if picture.xmp is not None and _fits("XMP packet", XMP_PREFIX + picture.xmp):
        segments = (_segment(0xE1, XMP_PREFIX + picture.xmp), *segments)
    if picture.exif is not None and _fits("EXIF block", PREFIX + picture.exif):
        settings["exif"] = PREFIX + picture.exif
    if picture.dpi is not None:
        settings["dpi"] = picture.dpi[::-1]
    return settings | {"extra": b"".join(segments)}


def _fits(name: str, data: bytes) -> bool:
    if len(data) <= MAX_SEGMENT_BYTES:
        return True
    note("an %s of %d bytes is left out: a JPEG takes 64 KB", name, len(data))
    return False


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
