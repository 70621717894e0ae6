"""PNG and TIFF files of 16 bits a channel, through imagecodecs and tifffile (extra ``deep``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, PictureError
from msan_runtime.pictures.exif import add_to_tiff
from msan_runtime.pictures.picture import Picture
from msan_runtime.pictures.png import SIGNATURE, metadata_chunks
from msan_runtime.pictures.strips import strips
from msan_runtime.pictures.tiff import metadata_directory
from msan_runtime.pictures.transparency import restored

__all__ = ["read_deep_png", "read_deep_tiff", "write_deep_png", "write_deep_tiff"]

DEFLATE_LEVEL = 4
PNG_HEADER_BYTES = len(SIGNATURE) + 25
MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2
UNASSOCIATED_ALPHA, ASSOCIATED_ALPHA = 2, 1
LUMA_WEIGHTS = np.array([19595, 38470, 7471], np.uint32)
"""ITU-R BT.601, in 65,536ths: those by which Pillow makes a picture of 8 bits grey."""


def read_deep_png(file: BinaryIO) -> PictureArray:
    """The samples, uint16 H×W×C as stored: grey, grey and alpha, RGB or RGBA.

    Raises:
        MissingExtraError: without imagecodecs.
    """
    file.seek(0)
    samples = _module("imagecodecs").png_decode(file.read())
    return samples.reshape(*samples.shape[:2], -1)


def read_deep_tiff(file: BinaryIO) -> PictureArray:
    """The samples, uint16 H×W×C as stored: grey, grey and alpha, RGB or RGBA.

    Raises:
        MissingExtraError: without tifffile and imagecodecs.
        PictureError: for samples of another meaning.
    """
    _module("imagecodecs")  # tifffile asks for it in the middle of a picture
    file.seek(0)
    with _module("tifffile").TiffFile(file) as tiff:
        page = tiff.pages.first
        _check_whole(page, file.seek(0, 2))
        colours = 3 if page.photometric == RGB else 1
        if page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB) or page.samplesperpixel < colours:
            raise PictureError(f"has 16-bit colours of a kind that is not supported ({_name_of(page.photometric)})")
        if ASSOCIATED_ALPHA in page.extrasamples:
            raise PictureError("has 16-bit colours multiplied by alpha, which is not supported. Save it without")
        samples = page.asarray(maxworkers=1)
        if page.samplesperpixel > 1 and page.planarconfig == 2:
            samples = np.moveaxis(samples, 0, -1)
        samples = samples.reshape(page.imagelength, page.imagewidth, -1)
        if page.photometric == MIN_IS_WHITE:
            samples[:, :, 0] = 65535 - samples[:, :, 0]
        alpha = page.extrasamples[:1] == (UNASSOCIATED_ALPHA,)
        return samples[:, :, : colours + alpha]


def write_deep_png(path: Path, picture: Picture) -> None:
    """Encode a picture of 16 bits."""
    encoded = memoryview(_module("imagecodecs").png_encode(_samples(picture), level=DEFLATE_LEVEL))
    with path.open("wb") as file:
        for part in (encoded[:PNG_HEADER_BYTES], metadata_chunks(picture), encoded[PNG_HEADER_BYTES:]):
            file.write(part)


def write_deep_tiff(path: Path, picture: Picture) -> None:
    """Encode a picture of 16 bits, compressed without loss."""
    _module("imagecodecs")
    settings: dict[str, Any] = {"extrasamples": ["unassalpha"]} if picture.alpha is not None else {}
    _module("tifffile").imwrite(
        path,
        _samples(picture),
        bigtiff=False,
        byteorder="<",
        photometric="minisblack" if picture.grey else "rgb",
        planarconfig=None if picture.grey and picture.alpha is None else "contig",
        compression="adobe_deflate",
        compressionargs={"level": DEFLATE_LEVEL},
        predictor=True,
        maxworkers=1,
        metadata=None,
        software=False,
        **settings,
    )
    add_to_tiff(path, metadata_directory(picture))


def _samples(picture: Picture) -> PictureArray:
    """What the file stores: uint16 H×W (grey), H×W×2 (grey, alpha), H×W×3 or H×W×4, colours put back."""
    colours = restored(picture)
    if picture.grey:
        colours = _luma(colours)
    if picture.alpha is not None:
        return np.dstack((colours, picture.alpha))
    return np.ascontiguousarray(colours)


def _luma(colours: PictureArray) -> PictureArray:
    grey = np.empty(colours.shape[:2], np.uint16)
    for rows in strips(colours.shape[0], colours.shape[1]):
        grey[rows] = (colours[rows].astype(np.uint32) @ LUMA_WEIGHTS + 0x8000) >> 16
    return grey


def _check_whole(page: Any, size_bytes: int) -> None:
    """Refuse a file that ends before its pixels do: tifffile would give zeros for some of them."""
    ends = [start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if not all(page.databytecounts) or max(ends, default=0) > size_bytes:
        raise PictureError("cannot be decoded: it is cut short")


def _name_of(photometric: Any) -> str:
    """In words, of those that tifffile knows."""
    return getattr(photometric, "name", str(photometric)).lower()


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(name, "deep") from error
