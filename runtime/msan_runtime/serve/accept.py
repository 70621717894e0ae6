"""Which format an answer has: the ``Accept`` header's best, or the source's."""

from __future__ import annotations

from collections.abc import Iterator

from msan_runtime.pictures.picture import FileFormat
from msan_runtime.serve.problems import ProblemError

__all__ = ["MEDIA_TYPES", "accepted_format"]

MEDIA_TYPES: dict[FileFormat, str] = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
}


def accepted_format(accept: str | None, source: FileFormat) -> FileFormat:
    """The format that ``accept`` likes best; of equals the source's, then the first of ``MEDIA_TYPES``.

    Raises:
        ProblemError: if it takes none of them.
    """
    ranges = list(_ranges(accept or "*/*"))
    order: list[FileFormat] = [source, *(each for each in MEDIA_TYPES if each != source)]
    best = max(order, key=lambda each: _liking(MEDIA_TYPES[each], ranges))
    if _liking(MEDIA_TYPES[best], ranges) == 0:
        raise ProblemError(
            "not-acceptable", f"Accept: {(accept or '')[:100]} holds none of {', '.join(MEDIA_TYPES.values())}"
        )
    return best


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
