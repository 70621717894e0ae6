"""Pictures encoded to files, with what their source carried."""

from __future__ import annotations

import tempfile
from pathlib import Path

from msan_runtime.atomic import replacing
from msan_runtime.errors import MissingExtraError, PictureError
from msan_runtime.pictures.deep import write_deep_png, write_deep_tiff
from msan_runtime.pictures.jpeg import write_jpeg
from msan_runtime.pictures.notes import notes_about
from msan_runtime.pictures.picture import FORMATS, SUFFIXES, EncodeOptions, FileFormat, Picture
from msan_runtime.pictures.png import write_png
from msan_runtime.pictures.quiet import quiet_pillow
from msan_runtime.pictures.tiff import write_tiff
from msan_runtime.pictures.webp import MAX_SIDE_PX as WEBP_SIDE_PX
from msan_runtime.pictures.webp import write_webp

__all__ = ["can_hold", "encode_picture", "write_picture"]

AS_ITS_SOURCE = EncodeOptions()

JPEG_SIDE_PX = 65_500
"""The limit of libjpeg."""


def write_picture(path: Path, picture: Picture, options: EncodeOptions = AS_ITS_SOURCE) -> None:
    """Encode ``picture`` to ``path`` by its suffix, atomically.

    Any number of threads may do so at once.

    Raises:
        PictureError: for a suffix of no known format, a picture that the format cannot hold (alpha
            or 16 bits in a JPEG, for example), or a path that cannot be written.
        MissingExtraError: for 16 bits without the packages for them.
    """
    file_format = FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise PictureError(f"cannot write {path}: the name must end in {', '.join(sorted(SUFFIXES))}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, quiet_pillow(), notes_about(path):
            _encode(temporary, file_format, picture, options)
    except MissingExtraError:
        raise
    except Exception as error:  # so can metadata that a camera wrote badly
        raise PictureError(f"cannot write {path}: {_reason(error)}") from error


def encode_picture(
    picture: Picture, file_format: FileFormat, options: EncodeOptions = AS_ITS_SOURCE, *, name: str
) -> bytes:
    """``picture`` as the bytes that :func:`write_picture` writes to a file; messages call it ``name``.

    Raises:
        As :func:`write_picture`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="msan-") as folder, quiet_pillow(), notes_about(name):
            path = Path(folder) / "picture"
            _encode(path, file_format, picture, options)
            return path.read_bytes()
    except MissingExtraError:
        raise
    except Exception as error:
        raise PictureError(f"cannot write {name}: {_reason(error)}") from error


def can_hold(file_format: FileFormat, picture: Picture) -> bool:
    """Whether a file of that format can hold the picture's bits, transparency and size."""
    match file_format:
        case "JPEG":
            return picture.alpha is None and not picture.deep and max(picture.pixels.shape) <= JPEG_SIDE_PX
        case "WEBP":
            return not picture.deep and max(picture.pixels.shape) <= WEBP_SIDE_PX
        case "PNG" | "TIFF":
            return True


def _encode(path: Path, file_format: FileFormat, picture: Picture, options: EncodeOptions) -> None:
    match file_format:
        case "JPEG":
            write_jpeg(path, picture, options)
        case "WEBP":
            write_webp(path, picture, options)
        case "PNG":
            (write_deep_png if picture.deep else write_png)(path, picture)
        case "TIFF":
            (write_deep_tiff if picture.deep else write_tiff)(path, picture)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
