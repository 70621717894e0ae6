"""What a picture is between its file and the network, and how its file was coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "SUFFIXES",
    "Coding",
    "EncodeOptions",
    "FileFormat",
    "JpegCoding",
    "Picture",
    "Subsampling",
]

FileFormat = Literal["JPEG", "PNG", "WEBP", "TIFF"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]

FORMATS: dict[str, FileFormat] = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
SUFFIXES = frozenset(FORMATS)

DEFAULT_MAX_PIXELS = 200_000_000
"""A larger picture is refused before it is decoded: a file of some kilobytes can claim any size."""


@dataclass(frozen=True, kw_only=True)
class JpegCoding:
    """How a JPEG was compressed.

    Attributes:
        tables: quantisation tables of luma and chroma (or of grey alone), 64 values each.
        subsampling: of the chroma; 4:4:4 where the file's is none of the three.
        progressive: whether it is.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: Subsampling
    progressive: bool


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How a file was coded: a result in the same format repeats it.

    Attributes:
        format: the file's format, told by its content.
        lossless: whether its pixels are as they were given to the encoder.
        jpeg: how it was compressed, of a JPEG whose components a JPEG can take again.
        segments: of a JPEG, the marker segments that go into the result as they are.
        chunks: of a PNG, types and contents of the chunks that go into the result as they are.
        iptc: of a TIFF, its IPTC records.
    """

    format: FileFormat
    lossless: bool
    jpeg: JpegCoding | None = None
    segments: tuple[bytes, ...] = ()
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    iptc: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture and what its file carried.

    Put other pixels in with ``dataclasses.replace(picture, pixels=...)``: the rest goes into the
    new file.

    Attributes:
        pixels: uint8 or uint16, H×W×3, upright, sRGB or as ``icc`` says. Where ``alpha`` is 0 they
            are filled from the visible pixels nearby.
        alpha: H×W, of the same type as ``pixels``, or ``None``.
        hidden: N×3, the file's own colours of the N pixels whose alpha is 0, row by row, or
            ``None``. The writer puts them back.
        grey: whether the file had one colour channel.
        icc: ICC profile of the pixels, or ``None``.
        exif: EXIF block from its TIFF header on, orientation 1 or none, or ``None``.
        xmp: XMP packet, orientation 1 or none, or ``None``.
        dpi: pixels an inch, (vertical, horizontal), or ``None``.
        coding: how the file was coded, or ``None`` for pixels of no file.

    Raises:
        ContractError: for arrays that do not fit each other.
    """

    pixels: PictureArray
    alpha: PictureArray | None = None
    hidden: PictureArray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    coding: Coding | None = None

    def __post_init__(self) -> None:
        pixels, alpha, hidden = self.pixels, self.alpha, self.hidden
        if pixels.dtype.name not in ("uint8", "uint16") or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ContractError(
                "a picture must be uint8 or uint16 of shape (height, width, 3), "
                f"not {pixels.dtype} of shape {pixels.shape}"
            )
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ContractError(
                f"alpha must be {pixels.dtype} of shape {pixels.shape[:2]}, not {alpha.dtype} of shape {alpha.shape}"
            )
        invisible = 0 if alpha is None else alpha.size - np.count_nonzero(alpha)
        if hidden is not None and (hidden.shape != (invisible, 3) or hidden.dtype != pixels.dtype):
            raise ContractError(
                f"hidden must be {pixels.dtype} of shape {(invisible, 3)}, not {hidden.dtype} of shape {hidden.shape}"
            )

    @property
    def deep(self) -> bool:
        """Whether it has 16 bits a channel."""
        return self.pixels.dtype == np.uint16


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How to encode a picture; what is left out follows its source.

    Attributes:
        jpeg_quality: 1 to 100, on the scale of libjpeg.
        jpeg_subsampling: of the chroma.
        webp_quality: 1 to 100; asking for one makes the WebP lossy.

    Raises:
        ContractError: for a quality out of range.
    """

    jpeg_quality: int | None = None
    jpeg_subsampling: Subsampling | None = None
    webp_quality: int | None = None

    def __post_init__(self) -> None:
        for quality in (self.jpeg_quality, self.webp_quality):
            if quality is not None and not 1 <= quality <= 100:
                raise ContractError(f"the quality must be 1 to 100, not {quality}")
