"""Picture files: decoded to uint8 or uint16 arrays, encoded again with what the file carried.

Kept, also into another format that can carry it: EXIF and XMP (orientation applied once, then 1), ICC
profile, resolution, alpha and the colours under it, greyness, 16 bits; of a JPEG its quantisation
tables, chroma subsampling and progressive scans, of a WebP whether it is lossless. Palette pictures
become RGB, CMYK becomes sRGB. 16-bit values are taken as sRGB-encoded, like 8-bit ones. Refused:
files of several pictures, cut files, 32-bit and floating-point ones, sizes over a limit.
"""

from __future__ import annotations

from msan_runtime.pictures.finding import find_pictures
from msan_runtime.pictures.picture import (
    DEFAULT_MAX_PIXELS,
    FORMATS,
    SUFFIXES,
    Coding,
    EncodeOptions,
    JpegCoding,
    Picture,
)
from msan_runtime.pictures.reading import read_picture
from msan_runtime.pictures.writing import write_picture

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "SUFFIXES",
    "Coding",
    "EncodeOptions",
    "JpegCoding",
    "Picture",
    "find_pictures",
    "read_picture",
    "write_picture",
]
