"""A video that is being decoded: its facts, and its frames in the order in which they are shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msan_runtime.video.colour import has_alpha
from msan_runtime.video.library import ffmpeg_errors, open_source
from msan_runtime.video.options import VideoError, VideoOptions, exact_seconds

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["VideoSource", "picture_streams", "zero_of"]

logger = logging.getLogger(__name__)

# A container's index finds key frames by decoding time, which lies before the time of showing.
SEEK_MARGIN_SECONDS = 1


class VideoSource:
    """The first video stream of a file, decoded from the start to the end that the options name.

    A context manager. Damage does not stop it: what the decoder makes of damaged frames is kept, packets
    that it cannot decode at all give no frame, and the first such place is said in a warning.

    Attributes:
        path: the file.
        container: the open file.
        stream: the video stream.
        first: the first frame within the range.
        origin: time in seconds, on the file's clock, that becomes the result's time 0.
        end: time in seconds on the file's clock at which the result ends, or None.
        damaged: places where the decoder reported damage so far.

    Raises:
        VideoError: if the file is no video, is interlaced, or has no frame within the range.
    """

    def __init__(self, path: Path, options: VideoOptions) -> None:
        self.path = path
        self.damaged = 0
        self.container = open_source(path)
        try:
            self.stream = _video_stream(path, self.container)
            zero = zero_of(self.container)
            start, end = exact_seconds(options.start_seconds), exact_seconds(options.end_seconds)
            self.end = None if end is None else zero + end
            self._last_pts: int | None = None
            self.first, self._rest = self._from(None if start is None else zero + start)
            self.origin = zero if start is None else self.time_of(self.first)
        except BaseException:
            self.container.close()
            raise

    def time_of(self, frame: VideoFrame) -> Fraction:
        """When a frame is shown, in seconds on the file's clock."""
        return (frame.pts or 0) * self.time_base

    @property
    def time_base(self) -> Fraction:
        """The unit of the frames' times, in seconds."""
        return self.stream.time_base or Fraction(1, 90_000)

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average."""
        return self.stream.average_rate or self.stream.guessed_rate or Fraction(25)

    @property
    def is_constant_rate(self) -> bool:
        """Whether all frames last equally long, as far as the file says; only MP4 and QuickTime say it."""
        return "mp4" in self.container.format.name and self.stream.base_rate == self.stream.average_rate

    @property
    def is_transparent(self) -> bool:
        """Whether the video has an alpha channel, also one that FFmpeg's decoder does not give (VP9)."""
        return has_alpha(self.first.format) or self.stream.metadata.get("alpha_mode") == "1"

    @property
    def frames_total(self) -> int | None:
        """How many frames there will be, as far as the file says; None if it does not."""
        ends = _end_of(self.stream)
        if ends is None and self.container.duration:
            ends = zero_of(self.container) + Fraction(self.container.duration, 1_000_000)
        if ends is None:
            return self.stream.frames or None
        last = ends if self.end is None else min(self.end, ends)
        estimate = max(1, round((last - self.time_of(self.first)) * self.rate))
        # Of the frames that a file counts, an edit list or a range may hide some.
        return min(estimate, self.stream.frames) if self.stream.frames else estimate

    def frames(self) -> Iterator[VideoFrame]:
        """The frames within the range, each with a time later than the one before; to be called once.

        Raises:
            VideoError: at a frame that is interlaced or of another size, or if the file cannot be read.
        """
        yield self.first
        last = self.first
        for frame in self._rest:
            if self.end is not None and self.time_of(frame) >= self.end:
                return
            yield frame
            last = frame
        self._check_whole(last)

    def _from(self, start: Fraction | None) -> tuple[VideoFrame, Iterator[VideoFrame]]:
        """The first frame at or after ``start``, and those after it."""
        if start is not None and start > SEEK_MARGIN_SECONDS:
            found = self._sought(start)
            if found is not None:
                return found
        frames = self._checked()
        for frame in frames:
            if start is None or self.time_of(frame) >= start:
                if self.end is not None and self.time_of(frame) >= self.end:
                    break
                return frame, frames
        asked = " between the start and the end asked for" if start is not None or self.end is not None else ""
        raise VideoError(f"{self.path} has no frame{asked} that can be decoded")

    def _sought(self, start: Fraction) -> tuple[VideoFrame, Iterator[VideoFrame]] | None:
        """As ``_from``, by the file's index; None, with the file at its beginning, if the index led too far."""
        from av.error import FFmpegError

        try:
            self.container.seek(int((start - SEEK_MARGIN_SECONDS) / self.time_base), stream=self.stream)
            frames = self._checked()
            frame = next(frames, None)
            if frame is not None and self.time_of(frame) <= start:
                while frame is not None and self.time_of(frame) < start:
                    frame = next(frames, None)
                if frame is not None and (self.end is None or self.time_of(frame) < self.end):
                    return frame, frames
        except FFmpegError:
            logger.info("%s cannot be sought in: decoded from its beginning", self.path)
        self._reopen()
        return None

    def _reopen(self) -> None:
        self.container.close()
        self.container = open_source(self.path)
        self.stream = _video_stream(self.path, self.container)
        self._last_pts = None
        self.damaged = 0

    def _checked(self) -> Iterator[VideoFrame]:
        """Every frame, with a time of its own, or an error that names the time."""
        size: tuple[int, int] | None = None
        for frame in self._decoded():
            self._settle_time(frame)
            at = f"{self.path}, at {float(self.time_of(frame)):.3f} s"
            size = size or (frame.height, frame.width)
            if frame.interlaced_frame:
                raise VideoError(
                    f"{at}: the video is interlaced. Deinterlace it first, for example with ffmpeg's bwdif"
                )
            if (frame.height, frame.width) != size:
                now, then = f"{frame.height}×{frame.width}", f"{size[0]}×{size[1]}"
                raise VideoError(f"{at}: the frames' size changes from {then} to {now} pixels. Split the video there")
            if frame.is_corrupt:
                self._note_damage(f"{at}: the frame is damaged; it is kept as the decoder mends it")
            yield frame

    def _decoded(self) -> Iterator[VideoFrame]:
        """Every frame that the decoder gives."""
        from av.error import InvalidDataError

        with ffmpeg_errors(self.path, "cannot be read to its end"):
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                except InvalidDataError:
                    at = "its end" if packet.pts is None else f"{float(packet.pts * self.time_base):.3f} s"
                    self._note_damage(f"{self.path}, near {at}: a frame cannot be decoded; it is left out")
                    continue
                yield from frames

    def _settle_time(self, frame: VideoFrame) -> None:
        """Give a frame without a time, or with one that does not go on, the next possible time."""
        if frame.pts is None:
            step = max(1, round(1 / self.rate / self.time_base))
            frame.pts = 0 if self._last_pts is None else self._last_pts + step
        if self._last_pts is not None and frame.pts <= self._last_pts:
            frame.pts = self._last_pts + 1
            self._note_damage(f"{self.path}, at {float(self.time_of(frame)):.3f} s: two frames have one time")
        self._last_pts = frame.pts

    def _note_damage(self, message: str) -> None:
        """Count a damaged place; say the first."""
        self.damaged += 1
        if self.damaged == 1:
            logger.warning("%s. Further damage is only counted", message)

    def _check_whole(self, last: VideoFrame) -> None:
        """Warn if the frames end long before the time at which the file says that they do."""
        ends = _end_of(self.stream)
        missing = 0.0 if ends is None else float(ends - self.time_of(last) - last.duration * self.time_base)
        if missing > 1:
            self.damaged += 1
            logger.warning("%s ends %.1f s before the end that it declares: is it cut off?", self.path, missing)

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def zero_of(container: InputContainer) -> Fraction:
    """The time on a file's clock that players show as 0, in seconds.

    MP4, Matroska and AVI count from 0 and may start later; transport streams start at any time.
    """
    from av.format import Flags

    if container.format.flags & Flags.ts_discont.value and container.start_time:
        return Fraction(container.start_time, 1_000_000)
    return Fraction(0)


def picture_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams that are no cover pictures or thumbnails."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The stream to deblur, with its decoder set to use every core."""
    if "_pipe" in container.format.name or container.format.name.startswith("image2"):
        raise VideoError(f"{path} is a picture, not a video. Give it a picture's suffix")
    streams = picture_streams(container)
    if not streams:
        only = "only a cover picture" if container.streams.video else "no video stream"
        raise VideoError(f"{path} is not a video: it has {only}")
    stream = streams[0]
    # PyAV's stubs say that there is always a decoder; a codec unknown to FFmpeg has none.
    if getattr(stream, "codec_context", None) is None:
        raise VideoError(f"{path}: FFmpeg has no decoder for its video")
    stream.thread_type = "AUTO"
    return stream


def _end_of(stream: VideoStream) -> Fraction | None:
    """When the video ends, in seconds on the file's clock, as far as the file says."""
    if stream.duration and stream.time_base:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    # Matroska says it in a tag.
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
    return None
