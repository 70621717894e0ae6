"""Pictures and metadata that the tests of picture files share, made by Pillow or by hand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

XMP = (
    b"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'>"
    b"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description rdf:about='' "
    b"xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation=\"%d\" tiff:Make='M\xc3\xa4ker'/></rdf:RDF>"
    b"</x:xmpmeta><?xpacket end='w'?>"
)


@pytest.fixture(scope="session")
def sample() -> Callable[[str], Image.Image]:
    """A maker of pictures of smooth ramps, 24 high and 40 wide, whose alpha (if any) is neither 0 nor 255."""

    def make(mode: str) -> Image.Image:
        y, x = np.mgrid[:24, :40]
        image = Image.fromarray(np.stack([x * 6, y * 10, 255 - x * 3 - y], axis=2).astype(np.uint8))
        if mode in ("LA", "RGBA"):
            image.putalpha(Image.fromarray((60 + x * 2).astype(np.uint8)))
        return image.convert(mode)

    return make


@pytest.fixture(scope="session")
def camera_exif() -> Callable[[int], bytes]:
    """A maker of what a phone writes: a maker, an orientation, and inner directories with a time and a place."""

    def make(orientation: int) -> bytes:
        exif = Image.Exif()
        exif[ExifTags.Base.Make] = "Maker"
        exif[ExifTags.Base.Orientation] = orientation
        exif[ExifTags.IFD.Exif] = {
            ExifTags.Base.DateTimeOriginal: "2024:05:06 07:08:09",
            ExifTags.Base.ExifImageWidth: 40,
            ExifTags.Base.ExifImageHeight: 24,
        }
        exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (47.0, 30.0, 7.5)}
        return exif.tobytes()

    return make


@pytest.fixture(scope="session")
def xmp() -> Callable[[int], bytes]:
    """A maker of XMP packets that tell an orientation."""
    return lambda orientation: XMP % orientation


@pytest.fixture(scope="session")
def icc() -> bytes:
    """A colour profile of RGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """A maker of PNG files by their specification, chunk by chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)

    return make
