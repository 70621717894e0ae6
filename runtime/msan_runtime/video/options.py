"""What is asked of a video run, and what it tells: options, progress, summary, error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from msan_runtime.errors import MsanError

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoError",
    "VideoOptions",
    "VideoProgress",
    "VideoSummary",
    "container_of",
    "exact_seconds",
]

# FFmpeg's name of the container that each suffix stands for.
CONTAINER_OF_SUFFIX = {
    ".avi": "avi",
    ".m4v": "mp4",
    ".mkv": "matroska",
    ".mov": "mov",
    ".mp4": "mp4",
    ".webm": "webm",
}
VIDEO_SUFFIXES = frozenset(CONTAINER_OF_SUFFIX)


class VideoError(MsanError):
    """A video file that cannot be read or written as asked."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video is encoded, and which part of it.

    Attributes:
        crf: constant rate factor of the encoder, 0 (best) to 63; the codec's default if left out.
        codec: name of an FFmpeg encoder; chosen by the container and the bit depth if left out.
        start_seconds: the first frame shown at or after this time is the first of the result.
        end_seconds: frames shown at or after this time are left out.

    Raises:
        VideoError: for a crf, a time or a range that cannot be.
    """

    crf: int | None = None
    codec: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.crf is not None and not 0 <= self.crf <= 63:
            raise VideoError(f"crf {self.crf} is out of range: 0 (best) to 63, for H.264 and H.265 to 51")
        for name, seconds in (("start", self.start_seconds), ("end", self.end_seconds)):
            if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
                raise VideoError(f"the {name} time is {seconds} s: it must be 0 or later")
        if self.end_seconds is not None and self.end_seconds <= (self.start_seconds or 0):
            raise VideoError(f"the end time, {self.end_seconds} s, is not after the start, {self.start_seconds or 0} s")


@dataclass(frozen=True, kw_only=True)
class VideoProgress:
    """How far a run is.

    Attributes:
        frames_done: frames written.
        frames_total: frames that the file says it has, or None.
        fps: frames written per second so far.
        eta_seconds: time left at that rate, or None.
    """

    frames_done: int
    frames_total: int | None
    fps: float
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class VideoSummary:
    """What was written.

    Attributes:
        frames: frames written.
        damaged: places of the source where the decoder reported damage.
        video_seconds: from the first frame's start to the last one's end.
        wall_seconds: how long the run took.
        codec: the encoder used.
        pixel_format: what it stored.
        left_out: streams of the source that are not in the result, each with the reason.
    """

    frames: int
    damaged: int
    video_seconds: float
    wall_seconds: float
    codec: str
    pixel_format: str
    left_out: tuple[str, ...]


def container_of(path: Path) -> str:
    """FFmpeg's name of the container that a file's suffix stands for.

    Raises:
        VideoError: if it is none that we write.
    """
    container = CONTAINER_OF_SUFFIX.get(path.suffix.lower())
    if container is None:
        known = ", ".join(sorted(VIDEO_SUFFIXES))
        raise VideoError(f"{path}: cannot write a video with the suffix {path.suffix or '(none)'}. Use one of {known}")
    return container


def exact_seconds(seconds: float | None) -> Fraction | None:
    """A time given as a float as the fraction that was meant, to the microsecond.

    The float 0.1 is a little more than 1/10: compared as it is, it would lose the frame at 3/30 s.
    """
    return None if seconds is None else Fraction(round(seconds * 1_000_000), 1_000_000)
