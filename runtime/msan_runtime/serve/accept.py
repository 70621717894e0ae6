"""Which formats an answer may have: those of the ``Accept`` header, the source's before its equals."""

from __future__ import annotations

from collections.abc import Iterator

from msan_runtime.pictures.picture import FileFormat
from msan_runtime.serve.problems import ProblemError

__all__ = ["MEDIA_TYPES", "accepted_formats"]

MEDIA_TYPES: dict[FileFormat, str] = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
}


def accepted_formats(accept: str | None, source: FileFormat) -> list[FileFormat]:
    """The formats that ``accept`` takes, best first; of equals the source's, then as in ``MEDIA_TYPES``.

    Raises:
        ProblemError: if it takes none of them.
    """
    ranges = list(_ranges(accept or "*/*"))
    order: list[FileFormat] = [source, *(each for each in MEDIA_TYPES if each != source)]
    likings: dict[FileFormat, float] = {each: _liking(MEDIA_TYPES[each], ranges) for each in order}
    taken: list[FileFormat] = [each for each in order if likings[each] > 0]
    if not taken:
        raise ProblemError(
            "not-acceptable", f"Accept: {(accept or '')[:100]} holds none of {', '.join(MEDIA_TYPES.values())}"
        )
    return sorted(taken, key=lambda each: -likings[each])


def _liking(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """The quality that the most exact range gives to a media type; 0 if none holds it."""
    group = media_type.partition("/")[0] + "/*"
    for wanted in (media_type, group, "*/*"):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept[:1000].lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            yield name, min(max(float(quality), 0.0), 1.0)
        except ValueError:
            yield name, 0.0
