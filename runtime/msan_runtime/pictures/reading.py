"""Picture files decoded: pixels upright and ready for the network, and what else the file carried."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, PictureError, UnknownFormatError
from msan_runtime.pictures.colour import ink_conversion, plain_conversion
from msan_runtime.pictures.deep import read_deep_png, read_deep_tiff
from msan_runtime.pictures.jpeg import open_jpeg, read_jpeg_header
from msan_runtime.pictures.metadata import Header, upright
from msan_runtime.pictures.notes import notes_about
from msan_runtime.pictures.picture import DEFAULT_MAX_PIXELS, FileFormat, Picture
from msan_runtime.pictures.png import SIGNATURE, open_png, read_png_header
from msan_runtime.pictures.quiet import quiet_pillow
from msan_runtime.pictures.strips import as_upright, pixels_from
from msan_runtime.pictures.tiff import open_tiff, read_tiff_header
from msan_runtime.pictures.transparency import fill_hidden
from msan_runtime.pictures.webp import open_webp, read_webp_header

__all__ = ["decode_picture", "read_header", "read_picture"]

HEADERS: dict[FileFormat, Callable[[BinaryIO], Header]] = {
    "JPEG": read_jpeg_header,
    "PNG": read_png_header,
    "WEBP": read_webp_header,
    "TIFF": read_tiff_header,
}
Decoded = tuple[PictureArray, PictureArray | None, bool, bytes | None]
"""Pixels, alpha, whether they are grey, and the ICC profile that they now have."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

ENDED_EARLY = (struct.error, EOFError, IndexError)
"""What Pillow's readers trip over where bytes are missing; its own words name its internals."""


def read_picture(path: Path, *, deep: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Decode a JPEG, PNG, WebP or TIFF file; the format is told by its content.

    Any number of threads may do so at once.

    Args:
        path: the file; it is opened for reading only.
        deep: take pictures of 16 bits a channel too; their pixels are uint16.
        max_pixels: refuse a larger one before it is decoded.

    Raises:
        PictureError: if it cannot be read, is damaged or cut short, is too large, holds several
            pictures or more bits than asked for.
        MissingExtraError: for 16 bits without the packages for them.
    """
    # An open file: given a path, Pillow 13 maps uncompressed TIFFs and garbles those it must turn.
    with _explained(path), path.open("rb") as file:
        return _read(file, deep=deep, max_pixels=max_pixels)


def decode_picture(file: BinaryIO, *, name: str, deep: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """:func:`read_picture` of an open file, from its first byte on; messages call it ``name``.

    Raises:
        As :func:`read_picture`.
    """
    with _explained(name):
        return _read(file, deep=deep, max_pixels=max_pixels)


def read_header(file: BinaryIO, *, name: str) -> Header:
    """What an open file, from its first byte on, says of its picture; no pixel is decoded.

    Raises:
        UnknownFormatError: if it is not a JPEG, PNG, WebP or TIFF.
        PictureError: if what it says cannot be read.
    """
    with _explained(name):
        return _header(file)


@contextmanager
def _explained(name: Path | str) -> Generator[None]:
    """Pillow without its warnings, and every error of the block as a PictureError that names the file."""
    try:
        with quiet_pillow(), notes_about(name):
            yield
    except PictureError as error:
        raise type(error)(f"{name} {error}") from error
    except MissingExtraError:
        raise
    except Exception as error:  # a damaged file can make the decoders raise almost anything
        raise PictureError(f"{name} {_reason(error)}") from error


def _header(file: BinaryIO) -> Header:
    file.seek(0)
    file_format = _format(file)
    file.seek(0)
    return HEADERS[file_format](file)


def _read(file: BinaryIO, *, deep: bool, max_pixels: int) -> Picture:
    header = _header(file)
    _check(header, deep=deep, max_pixels=max_pixels)
    file.seek(0)
    metadata = upright(header.metadata)
    pixels, alpha, grey, icc = (_deep_pixels if header.bits > 8 else _pixels)(file, header)
    return Picture(
        pixels=pixels,
        alpha=alpha,
        hidden=None if alpha is None else fill_hidden(pixels, alpha),
        grey=grey,
        icc=icc,
        exif=metadata.exif,
        xmp=metadata.xmp,
        dpi=metadata.dpi,
        coding=header.coding,
    )


def _format(file: BinaryIO) -> FileFormat:
    start = file.read(12)
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(SIGNATURE):
        return "PNG"
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "WEBP"
    if start.startswith(TIFF_STARTS):
        return "TIFF"
    raise UnknownFormatError("is not a JPEG, PNG, WebP or TIFF picture")


def _check(header: Header, *, deep: bool, max_pixels: int) -> None:
    if header.pictures > 1:
        raise PictureError(f"holds {header.pictures} pictures (animated or multi-page). Split it first")
    pixels = header.height * header.width
    if pixels > max_pixels:
        raise PictureError(
            f"is too large: {pixels / 1e6:,.1f} megapixels, the limit is {max_pixels / 1e6:,.1f}. "
            "Raise it if you trust the file"
        )
    if not header.integer or (header.bits > 8 and (header.bits != 16 or not deep)):
        wanted = "8 or 16 bits" if deep else "8 bits"
        kind = f"{header.bits} bits" if header.integer else f"{header.bits}-bit signed or floating-point values"
        raise PictureError(f"has more than 8 bits a channel ({kind}), which is not supported. Convert it to {wanted}")


def _pixels(file: BinaryIO, header: Header) -> Decoded:
    """Up to 8 bits, through Pillow."""
    image, icc = _opened(file, header), header.metadata.icc
    alpha = "A" in image.getbands() or "transparency" in image.info
    convert, icc = ink_conversion(icc) if image.mode == "CMYK" else (plain_conversion(image.mode, alpha=alpha), icc)
    # Pillow turns TIFFs itself, by the same tag.
    orientation = 1 if header.coding.format == "TIFF" else header.metadata.orientation
    pixels, opacity = pixels_from(image, orientation=orientation, convert=convert, alpha=alpha)
    return pixels, opacity, image.mode in ("1", "L", "LA"), icc


def _deep_pixels(file: BinaryIO, header: Header) -> Decoded:
    """16 bits, through imagecodecs and tifffile."""
    samples = (read_deep_png if header.coding.format == "PNG" else read_deep_tiff)(file)
    samples = as_upright(samples, header.metadata.orientation)
    colours, alpha = (samples[:, :, :-1], samples[:, :, -1]) if samples.shape[2] in (2, 4) else (samples, None)
    grey = colours.shape[2] == 1
    pixels = np.ascontiguousarray(colours.repeat(3, axis=2) if grey else colours)
    return pixels, None if alpha is None else np.ascontiguousarray(alpha), grey, header.metadata.icc


def _opened(file: BinaryIO, header: Header) -> Image.Image:
    match header.coding.format:
        case "JPEG":
            return open_jpeg(file)
        case "PNG":
            return open_png(file)
        case "WEBP":
            return open_webp(file)
        case "TIFF":
            return open_tiff(file, header)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # without one it is Pillow's, of a damaged file
        return f"cannot be read: {error.strerror}"
    if isinstance(error.__cause__ or error, ENDED_EARLY) or "truncated" in str(error).lower():
        return "cannot be decoded: it is cut short"
    if str(error) == "not identified by this driver":  # Pillow found no size or no colours
        return "cannot be decoded: its header is damaged or cut short"
    return f"cannot be decoded: {str(error) or type(error).__name__}"
