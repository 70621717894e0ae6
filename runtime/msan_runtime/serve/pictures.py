"""A picture file in, a picture file out: read and written by the code of ``msan deblur``."""

from __future__ import annotations

import dataclasses
import errno
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, PictureError, UnknownFormatError
from msan_runtime.pictures.metadata import Header
from msan_runtime.pictures.picture import FORMATS, SUFFIXES, EncodeOptions, FileFormat, Picture
from msan_runtime.pictures.reading import decode_picture, read_header
from msan_runtime.pictures.writing import can_hold, encode_picture
from msan_runtime.serve.accept import MEDIA_TYPES, accepted_formats
from msan_runtime.serve.asgi import Reply
from msan_runtime.serve.desk import Task
from msan_runtime.serve.problems import ProblemError

__all__ = ["PictureOptions", "PictureTask", "options_from_query"]

OPTIONS = ("format", "quality")
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How a result is written.

    Attributes:
        accept: the ``Accept`` header.
        picture_format: in place of those that ``accept`` takes.
        quality: 1 to 100, of JPEG and WebP; the source's if left out.
    """

    accept: str | None = None
    picture_format: FileFormat | None = None
    quality: int | None = None


def options_from_query(query: Iterable[tuple[str, str]], accept: str | None) -> PictureOptions:
    """The options that a query, as names and values, and an ``Accept`` header ask for.

    Raises:
        ProblemError: for an unknown option or value, or an option given twice.
    """
    given: dict[str, str] = {}
    for name, value in query:
        if name not in OPTIONS:
            raise ProblemError("bad-option", f"no option {name[:40]!r}. There are: {', '.join(OPTIONS)}")
        if name in given:
            raise ProblemError("bad-option", f"the option {name} is given twice: give it once")
        given[name] = value
    picture_format = _format_of(given.get("format"))
    if picture_format is None:
        accepted_formats(accept, "PNG")  # what no picture could be answered with is refused before one is sent
    return PictureOptions(accept=accept, picture_format=picture_format, quality=_quality_of(given.get("quality")))


def _format_of(name: str | None) -> FileFormat | None:
    found = None if name is None else FORMATS.get(f".{name.lower()}")
    if name is not None and found is None:
        known = ", ".join(suffix[1:] for suffix in sorted(SUFFIXES))
        raise ProblemError("bad-option", f"no format {name[:40]!r}. There are: {known}")
    return found


def _quality_of(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 100):
        raise ProblemError("bad-option", f"quality must be a whole number from 1 to 100, not {text[:40]!r}")
    return None if text is None else int(text)


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
                f"the picture has {size_px / 1e6:,.1f} megapixels ({header.width}×{header.height} px, width × height), "
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
        file_format = options.picture_format or _best_format(picture, picture.coding.format, options.accept)
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


def _best_format(picture: Picture, source: FileFormat, accept: str | None) -> FileFormat:
    """The first accepted format that can hold the picture; if none can, the first, whose writer says why not."""
    formats = accepted_formats(accept, source)
    fitting: list[FileFormat] = [each for each in formats if can_hold(each, picture)]
    return (fitting or formats)[0]


def _problem_from(error: PictureError) -> ProblemError:
    cause = error.__cause__
    if isinstance(cause, MemoryError):
        return ProblemError("no-room", "the machine has too little memory for the picture now", 5)
    if isinstance(cause, OSError) and cause.errno in FULL_DISK:
        return ProblemError("no-room", "the machine's disk is full", 60)
    return ProblemError("bad-picture", str(error))
