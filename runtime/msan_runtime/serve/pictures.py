"""A picture file in, a picture file out: read and written by the code of ``msan deblur``."""

from __future__ import annotations

import dataclasses
import errno
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, PictureError, UnknownFormatError
from msan_runtime.naming import FORMAT_SUFFIXES
from msan_runtime.pictures.metadata import Header
from msan_runtime.pictures.picture import FORMATS, EncodeOptions, FileFormat, Picture
from msan_runtime.pictures.reading import decode_picture, read_header
from msan_runtime.pictures.writing import encode_picture
from msan_runtime.serve.accept import MEDIA_TYPES, accepted_format
from msan_runtime.serve.asgi import Reply
from msan_runtime.serve.desk import Task
from msan_runtime.serve.problems import ProblemError

__all__ = ["PictureOptions", "PictureTask", "options_from_query"]

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How a result is written.

    Attributes:
        accept: the ``Accept`` header.
        picture_format: in place of what ``accept`` says.
        quality: 1 to 100, of JPEG and WebP; the source's if left out.
    """

    accept: str | None = None
    picture_format: FileFormat | None = None
    quality: int | None = None


def options_from_query(query: Mapping[str, str], accept: str | None) -> PictureOptions:
    """The options that a query and an ``Accept`` header ask for.

    Raises:
        ProblemError: for an unknown option or value.
    """
    unknown = sorted(set(query) - {"format", "quality"})
    if unknown:
        raise ProblemError("bad-option", f"no option {unknown[0][:40]!r}. There are: format, quality")
    name, quality = query.get("format"), query.get("quality")
    if name is not None and name not in FORMAT_SUFFIXES:
        raise ProblemError("bad-option", f"no format {name[:40]!r}. There are: {', '.join(FORMAT_SUFFIXES)}")
    if quality is not None and not (quality.isascii() and quality.isdigit() and 1 <= int(quality[:9]) <= 100):
        raise ProblemError("bad-option", f"quality must be a whole number from 1 to 100, not {quality[:40]!r}")
    if name is None:
        accepted_format(accept, "PNG")  # what no picture could be answered with is refused before one is sent
    return PictureOptions(
        accept=accept,
        picture_format=None if name is None else FORMATS[FORMAT_SUFFIXES[name]],
        quality=None if quality is None else int(quality),
    )


class PictureTask(Task):
    """One picture file to deblur."""

    def __init__(self, body: bytes, options: PictureOptions, *, most_pixels: int) -> None:
        self._body = body
        self._options = options
        self._most_pixels = most_pixels
        self._picture: Picture | None = None

    def measure(self) -> int:
        """Pixels of the picture, those of 16 bits counted twice."""
        header = self._header()
        size_px = header.height * header.width
        if size_px > self._most_pixels:
            raise ProblemError(
                "picture-too-large",
                f"the picture has {size_px / 1e6:,.1f} megapixels ({header.height}×{header.width} px), "
                f"the limit of this server is {self._most_pixels / 1e6:g}",
            )
        return size_px * (2 if header.bits > 8 else 1)

    def decode(self) -> Sequence[PictureArray]:
        try:
            picture = decode_picture(io.BytesIO(self._body), name="the file", deep=True, max_pixels=self._most_pixels)
        except MissingExtraError as error:
            raise ProblemError("unsupported-format", f"this server reads no pictures of 16 bits: {error}") from error
        except PictureError as error:
            raise _problem_from(error) from error
        self._picture = picture
        self._body = b""
        return (picture.pixels,)

    def encode(self, sharp: Sequence[PictureArray]) -> Reply:
        picture, self._picture = self._picture, None
        if picture is None or picture.coding is None:
            raise RuntimeError("a picture is encoded before it was decoded")
        options = self._options
        file_format = options.picture_format or accepted_format(options.accept, picture.coding.format)
        encode = EncodeOptions(jpeg_quality=options.quality, webp_quality=options.quality)
        try:
            body = encode_picture(dataclasses.replace(picture, pixels=sharp[0]), file_format, encode, name="the result")
        except PictureError as error:
            raise _problem_from(error) from error
        return Reply(media_type=MEDIA_TYPES[file_format], headers={"vary": "Accept"}, body=body)

    def _header(self) -> Header:
        try:
            return read_header(io.BytesIO(self._body), name="the file")
        except UnknownFormatError as error:
            raise ProblemError("unsupported-format", str(error)) from error
        except PictureError as error:
            raise _problem_from(error) from error


def _problem_from(error: PictureError) -> ProblemError:
    cause = error.__cause__
    if isinstance(cause, MemoryError):
        return ProblemError("no-room", "the machine has too little memory for the picture now", 5)
    if isinstance(cause, OSError) and cause.errno in FULL_DISK:
        return ProblemError("no-room", "the machine's disk is full", 60)
    return ProblemError("bad-picture", str(error))
