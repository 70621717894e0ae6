"""Picture files: decoded to uint8 arrays, encoded again with what the file carried.

Kept: EXIF (orientation applied once, then removed; of a TIFF the tags that describe the picture and
not its storage), ICC profile, alpha, greyness. Palette pictures come out as RGB, CMYK as RGB without its
profile. Pictures of more than 8 bits a channel are refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from msan_runtime.atomic import replacing
from msan_runtime.contract import PictureArray
from msan_runtime.errors import PictureError

__all__ = ["FORMATS", "SUFFIXES", "Picture", "find_pictures", "read_picture", "write_picture"]

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
SUFFIXES = frozenset(FORMATS)

MULTI_PAGE_FORMATS = frozenset({"PNG", "WEBP", "TIFF"})
"""Formats whose further frames are other pictures. (A phone's JPEG may hold a preview as second frame.)"""

TIFF_TAGS_KEPT = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
"""Tags of a TIFF that describe the picture; most others describe how its pixels lie in the file."""

SUB_IFDS_KEPT = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)

SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {"compress_level": 4},
    "WEBP": {"quality": 95, "method": 4},
    "TIFF": {"compression": "tiff_deflate"},
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture and what its file carried.

    Attributes:
        pixels: uint8 H×W×3, upright.
        alpha: uint8 H×W, or ``None``.
        grey: whether the file had one colour channel.
        icc: ICC profile of the pixels, or ``None``.
        exif: EXIF block without orientation, or ``None``.
    """

    pixels: PictureArray
    alpha: PictureArray | None
    grey: bool
    icc: bytes | None
    exif: bytes | None


def find_pictures(folder: Path) -> list[Path]:
    """Every file under ``folder`` that is named like a picture, sorted; none if there is no such folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_picture(path: Path) -> Picture:
    """Decode a JPEG, PNG, WebP or TIFF file; the format is told by its content.

    Raises:
        PictureError: if it cannot be read, is damaged, holds several pictures or more than 8 bits.
    """
    try:
        # From an open file: given a path, Pillow 13 maps uncompressed TIFFs and garbles those it must turn.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=["JPEG", "PNG", "WEBP", "TIFF"]) as image:
                return _picture(image, path)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a JPEG, PNG, WebP or TIFF picture") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large: {error}") from error
    except Exception as error:  # a damaged file can make Pillow's decoders raise almost anything
        raise PictureError(f"{path} cannot be decoded: {_reason(error)}") from error


def write_picture(path: Path, picture: Picture) -> None:
    """Encode ``picture`` to ``path`` by its suffix, atomically.

    Raises:
        PictureError: for a suffix of no known format, alpha into JPEG, or a path that cannot be written.
    """
    file_format = FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise PictureError(f"cannot write {path}: the name must end in {', '.join(sorted(SUFFIXES))}")
    if picture.alpha is not None and file_format == "JPEG":
        raise PictureError(f"cannot write {path}: JPEG has no transparency. Choose .png, .webp or .tif")
    carried = {"icc_profile": picture.icc, "exif": picture.exif}
    options = SAVE_OPTIONS[file_format] | {key: value for key, value in carried.items() if value}
    if file_format == "TIFF" and picture.exif:
        del options["compression"]  # compressed, Pillow cannot write the EXIF block's inner directories
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            _image(picture).save(temporary, file_format, **options)
    except Exception as error:  # so can metadata that a camera wrote badly
        raise PictureError(f"cannot write {path}: {_reason(error)}") from error


def _picture(image: Image.Image, path: Path) -> Picture:
    if image.format in MULTI_PAGE_FORMATS and getattr(image, "n_frames", 1) > 1:
        frames = getattr(image, "n_frames", 1)
        raise PictureError(f"{path} holds {frames} pictures (animated or multi-page). Split it first")
    if image.mode.startswith(("I", "F")) or _sixteen_bits(image):
        raise PictureError(f"{path} has more than 8 bits a channel, which is not supported. Convert it to 8 bits")
    upright = ImageOps.exif_transpose(image)
    carries_alpha = "A" in upright.getbands() or "transparency" in upright.info
    rgba = upright.convert("RGBA") if carries_alpha else None
    exif = _tiff_exif(image) if image.format == "TIFF" else upright.getexif()
    return Picture(
        pixels=np.array((rgba or upright).convert("RGB")),
        alpha=None if rgba is None else np.array(rgba.getchannel("A")),
        grey=image.mode in ("1", "L", "LA"),
        icc=None if image.mode == "CMYK" else image.info.get("icc_profile"),
        exif=exif.tobytes() if exif else None,
    )


def _sixteen_bits(image: Image.Image) -> bool:
    """Whether Pillow is about to cut 16-bit RGB channels to 8 bits: its raw mode is then ``RGB;16B`` or alike."""
    arguments = [tile.args for tile in getattr(image, "tile", [])]
    raw_modes = [args[0] if isinstance(args, tuple) and args else args for args in arguments]
    return any("16" in str(mode) for mode in raw_modes)


def _tiff_exif(image: Image.Image) -> Image.Exif:
    """What of a TIFF's tags another file can carry."""
    tags, kept = image.getexif(), Image.Exif()
    for tag in TIFF_TAGS_KEPT:
        if tag in tags:
            kept[tag] = tags[tag]
    for ifd in SUB_IFDS_KEPT:
        if inner := tags.get_ifd(ifd):
            kept[ifd] = inner
    return kept


def _image(picture: Picture) -> Image.Image:
    image = Image.fromarray(picture.pixels)
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    return image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
