"""The file that a video run writes: the encoded frames, the copied streams, the metadata."""

from __future__ import annotations

import logging
import struct
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msan_runtime.video.colour import FULL, UNSPECIFIED, ColourConverter
from msan_runtime.video.copied import StreamCopier, kept_metadata
from msan_runtime.video.encoder import Encoding
from msan_runtime.video.library import ffmpeg_errors, side_data_of
from msan_runtime.video.options import VideoError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import Chapter, OutputContainer
    from av.video.stream import VideoStream

    from msan_runtime.video.source import VideoSource

__all__ = ["VideoTarget"]

logger = logging.getLogger(__name__)

# Encoders whose video itself tells the shape of its pixels.
SHAPE_IN_VIDEO = ("libx264", "libx265", "h264", "hevc", "mpeg4")


class VideoTarget:
    """A video file that is being written like a source, in one thread at a time.

    A context manager; the file is whole only after ``finish``.

    Args:
        path: where to write.
        container: FFmpeg's name of the container.
        source: the video that is deblurred; its times, tags and other streams are taken over.
        encoding: how the frames are stored.
        colours: what turns RGB frames into frames to be encoded.
        trimmed: whether what lies before the source's origin is left out.

    Attributes:
        frames: how many frames have been written.
        seconds: from the start of the result to the end of its last frame.

    Raises:
        VideoError: if the encoder or the container refuses the video.
    """

    def __init__(
        self,
        path: Path,
        container: str,
        source: VideoSource,
        encoding: Encoding,
        colours: ColourConverter,
        *,
        trimmed: bool,
    ) -> None:
        import av

        self.frames = 0
        self.seconds = 0.0
        self._format = container
        self._colours = colours
        # AVI holds no times but the frames' order: what the decoder's delay puts before the first one goes.
        self._offset = round(source.origin / source.time_base) if container != "avi" else source.first.pts or 0
        self._time_base = source.time_base
        self._frame_ticks = max(1, round(1 / source.rate / source.time_base))
        # Encoders give packets in another order than they take frames; each frame's duration waits here for its own.
        self._durations: dict[int, int] = {}
        self._path = source.path
        tags = kept_metadata(source.container.metadata)
        with ffmpeg_errors(path, "cannot be written"):
            self._output = av.open(
                str(path.absolute()), "w", format=container, container_options=_muxer_options(container, tags)
            )
        self._output.metadata.update(tags)
        self._output.set_chapters(_chapters_within(source))
        self._copier = StreamCopier(
            source.path, self._output, container, origin=source.origin, end=source.end, trimmed=trimmed
        )
        try:
            self._stream = self._add_streams(source, encoding)
        except BaseException:
            self.close()
            raise

    @property
    def left_out(self) -> tuple[str, ...]:
        """Streams of the source that are not in the result, each with the reason."""
        return tuple(self._copier.left_out)

    @property
    def damaged(self) -> int:
        """Packets of the copied streams that were too damaged to be written."""
        return self._copier.damaged

    def write(self, rgb: VideoFrame) -> None:
        """Encode a frame, and copy what belongs before the encoder's output.

        Raises:
            VideoError: if the encoder or the disk refuses.
        """
        with ffmpeg_errors(self._path, f"cannot be encoded with {self._stream.codec_context.name}"):
            frame = self._colours.from_rgb(rgb)
            # The type of the source's picture would make the encoder repeat its choice of key frames.
            frame.pict_type = 0
            frame.pts = (rgb.pts or 0) - self._offset
            frame.time_base = self._time_base
            frame.duration = rgb.duration or self._frame_ticks
            self._durations[frame.pts] = frame.duration
            self._mux(self._stream.encode(frame))
        self.frames += 1
        self.seconds = float((frame.pts + frame.duration) * self._time_base)

    def finish(self) -> None:
        """Write what the encoder still holds, the rest of the copied streams, and the file's end.

        Raises:
            VideoError: if the encoder or the disk refuses.
        """
        with ffmpeg_errors(self._path, f"cannot be encoded with {self._stream.codec_context.name}"):
            self._mux(self._stream.encode(None))
            self._copier.advance(None)
            self._output.close()

    def close(self) -> None:
        """Close both files; without ``finish`` the result is not whole."""
        from av.error import FFmpegError

        self._copier.close()
        try:
            self._output.close()
        except FFmpegError:
            # The error that led here says more than a file end that cannot be written.
            logger.debug("the end of an unfinished video could not be written")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts or 0, self._frame_ticks)
            if packet.dts is not None:
                self._copier.advance(packet.dts * packet.time_base)
            self._output.mux(packet)

    def _add_streams(self, source: VideoSource, encoding: Encoding) -> VideoStream:
        """Give the output all streams, in the source's order, and start the encoder."""
        video: VideoStream | None = None
        for stream in source.container.streams:
            if stream.index == source.stream.index:
                video = _add_video(self._output, self._format, source, encoding, self._colours)
            else:
                self._copier.add_stream(stream.index)
        if video is None:
            raise VideoError(f"{source.path} lost its video while it was read")
        with ffmpeg_errors(source.path, f"cannot be stored in {self._format} with {encoding.codec}"):
            self._output.start_encoding()
            self._copier.start()
        return video


def _add_video(
    output: OutputContainer, container: str, source: VideoSource, encoding: Encoding, colours: ColourConverter
) -> VideoStream:
    """Add the stream that is encoded, with the source's times, shape, colours and tags.

    Raises:
        VideoError: if the container does not hold the codec.
    """
    import av

    first = source.first
    try:
        stream = output.add_stream(encoding.codec, rate=source.rate, options=dict(encoding.options))
    except ValueError as error:
        raise VideoError(f"{container} cannot hold video of the codec {encoding.codec}. Choose another one") from error
    if not isinstance(stream, av.VideoStream):
        raise VideoError(f"{encoding.codec} is no video encoder")
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, encoding.pixel_format.name
    stream.time_base = source.time_base
    context = stream.codec_context
    context.time_base = source.time_base
    _copy_pixel_shape(stream, container, source, encoding)
    _tag_colours(stream, first, encoding, colours)
    if container == "avi" or (container in ("mp4", "mov") and not source.is_constant_rate):
        # These files hold decoding times and their differences. With B-frames these are not the frames' own:
        # at a variable rate durations would be wrong, and the end cut off.
        context.max_b_frames = 0
    if encoding.codec == "libx265" and container in ("mp4", "mov"):
        # Apple's players do not play the muxer's own choice, hev1.
        context.codec_tag = "hvc1"
    stream.metadata.update(kept_metadata(source.stream.metadata))
    stream.disposition = source.stream.disposition
    _copy_orientation(stream, container, first)
    return stream


def _tag_colours(stream: VideoStream, first: VideoFrame, encoding: Encoding, colours: ColourConverter) -> None:
    """Name the colours as the source does; an RGB source gets the name of the matrix that it is stored with."""
    stream.color_primaries = first.color_primaries or UNSPECIFIED
    stream.color_trc = first.color_trc or UNSPECIFIED
    if encoding.pixel_format.is_rgb:
        return
    if first.format.is_rgb:
        stream.colorspace, stream.color_range = colours.matrix, colours.target_range
    else:
        stream.colorspace = first.colorspace or UNSPECIFIED
        # Full range has to be named: limited is what an unnamed range means.
        stream.color_range = first.color_range or (FULL if colours.source_range == FULL else 0)


def _copy_pixel_shape(stream: VideoStream, container: str, source: VideoSource, encoding: Encoding) -> None:
    """Keep the sample aspect ratio.

    Raises:
        VideoError: if it could be kept only in Matroska's header, which PyAV does not write.
    """
    ratio = source.stream.sample_aspect_ratio
    if not ratio:
        return
    if ratio != 1 and container in ("matroska", "webm") and not encoding.codec.startswith(SHAPE_IN_VIDEO):
        raise VideoError(
            f"{source.path} has pixels of the shape {ratio.numerator}:{ratio.denominator}, which "
            f"{encoding.codec} in {container} cannot say here. Choose .mp4 as the target, or another codec"
        )
    stream.codec_context.sample_aspect_ratio = ratio


def _copy_orientation(stream: VideoStream, container: str, first: VideoFrame) -> None:
    """Keep the display matrix: the pixels lie as in the source, and players turn them as they did.

    Raises:
        VideoError: if the container has no place for it.
    """
    matrix = side_data_of(first).get("DISPLAYMATRIX")
    if matrix is None:
        return
    if container == "avi":
        raise VideoError("AVI cannot say that a video is to be turned. Choose another target, such as .mp4")
    stream.set_display_matrix(struct.unpack("=9i", matrix[:36]))


def _muxer_options(container: str, tags: dict[str, str]) -> dict[str, str]:
    """MP4 keeps tags of phones (com.apple..., com.android...) only in its newer table, which holds all or none."""
    phone = any("." in key for key in tags)
    return {"movflags": "use_metadata_tags"} if container in ("mp4", "mov") and phone else {}


def _chapters_within(source: VideoSource) -> list[Chapter]:
    """The chapters on the result's clock, cut to its range."""
    kept: list[Chapter] = []
    for chapter in source.container.chapters():
        tick = chapter["time_base"] or Fraction(1, 1_000_000)
        offset = round(source.origin / tick)
        start, end = max(0, chapter["start"] - offset), chapter["end"] - offset
        if source.end is not None:
            end = min(end, round((source.end - source.origin) / tick))
        if end > start:
            kept.append({**chapter, "start": start, "end": end})
    return kept
