"""Streams that are copied: sound, subtitles, covers and attachments, packet by packet beside the video."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from msan_runtime.video.library import ffmpeg_errors, open_source
from msan_runtime.video.options import VideoError

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer
    from av.stream import Stream

__all__ = ["StreamCopier", "kept_metadata"]

logger = logging.getLogger(__name__)

# What muxers write themselves, and what was true of the source's encoding only.
NOT_KEPT = frozenset(
    {
        "alpha_mode",
        "bps",
        "compatible_brands",
        "duration",
        "encoder",
        "major_brand",
        "minor_version",
        "number_of_bytes",
        "number_of_frames",
        "rotate",
        "vendor_id",
    }
)
# How long after the end packets are looked for: no file interleaves its streams more loosely.
LOOSENESS_SECONDS = 10
# Containers that can carry sound which is decoded and not heard: what a decoder needs before the first sample.
HIDING_CONTAINERS = frozenset({"mp4", "mov"})


class StreamCopier:
    """Copies the other streams of a file, in step with the encoded video.

    It reads the file a second time, so that it neither waits for the decoder nor keeps packets: memory
    does not depend on the length of the video or on how the source is interleaved.

    Args:
        path: the source.
        output: where to.
        container: FFmpeg's name of the output's container.
        origin: time of the source, in seconds, that is 0 in the result.
        end: time of the source at which the result ends, or None.
        trimmed: whether packets before the origin are left out.

    Attributes:
        left_out: streams that are not in the result, each with the reason.
        damaged: packets so far that the target's muxer refused.

    Raises:
        VideoError: if the file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        output: OutputContainer,
        container: str,
        *,
        origin: Fraction,
        end: Fraction | None,
        trimmed: bool,
    ) -> None:
        self.left_out: list[str] = []
        self.damaged = 0
        self._path = path
        self._output = output
        self._format = container
        self._origin = origin
        self._end = end
        self._trimmed = trimmed
        self._source = open_source(path)
        self._targets: dict[int, Stream] = {}
        self._packets: Iterator[Packet[Stream]] = iter(())
        self._next: Packet[Stream] | None = None

    def add_stream(self, index: int) -> None:
        """Give the output a stream like the source's stream ``index``, or note why it is left out.

        Raises:
            VideoError: if the container cannot store this sound or these subtitles.
        """
        stream = self._source.streams[index]
        reason = _reason_to_leave_out(stream)
        if reason is not None:
            self._leave_out(stream, reason)
        elif stream.type == "attachment" or _is_cover(stream):
            self._add_cover_or_attachment(stream)
        elif self._is_made_anew(stream):
            return
        elif _takes(self._format, stream):
            self._targets[index] = _add_copy(self._output, stream)
        elif stream.type in ("audio", "subtitle"):
            raise VideoError(
                f"{self._path}: its {_described(stream)} cannot be stored in {self._format}. "
                "Choose a target that can, such as .mkv"
            )
        else:
            self._leave_out(stream, f"cannot be stored in {self._format}")

    def start(self) -> None:
        """Begin to read; call it when every stream has been added."""
        streams = [self._source.streams[index] for index in self._targets]
        self._packets = self._wanted(streams) if streams else iter(())
        self._next = next(self._packets, None)

    def advance(self, until: Fraction | None) -> None:
        """Write the packets that come before a time of the result in seconds; all that are left for None.

        Raises:
            VideoError: if the source cannot be read.
        """
        while self._next is not None and (until is None or _time_of(self._next) < until):
            self._write(self._next)
            self._next = next(self._packets, None)

    def _write(self, packet: Packet[Stream]) -> None:
        from av.error import InvalidDataError

        try:
            self._output.mux(packet)
        except InvalidDataError:
            self.damaged += 1
            if self.damaged == 1:
                where = f"{self._path}, at {float(_time_of(packet)):.3f} s of the result"
                logger.warning("%s: a packet of sound or subtitles is damaged; it is left out", where)

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _add_cover_or_attachment(self, stream: Stream) -> None:
        """A cover goes into MP4 as a stream, into Matroska as an attachment: each one's own way."""
        from av.stream import AttachmentStream

        if self._format == "matroska" and isinstance(stream, AttachmentStream):
            kind = stream.mimetype or "application/octet-stream"
            self._output.add_attachment(stream.name or "attachment", kind, stream.data)
        elif self._format == "matroska":
            suffix, kind = ("png", "image/png") if stream.codec_context.name == "png" else ("jpg", "image/jpeg")
            name = stream.metadata.get("filename", f"cover.{suffix}")
            self._output.add_attachment(name, kind, self._cover(stream.index))
        elif self._format == "mp4" and _is_cover(stream):
            self._targets[stream.index] = _add_copy(self._output, stream)
        else:
            self._leave_out(stream, f"cannot be stored in {self._format}")

    def _is_made_anew(self, stream: Stream) -> bool:
        """Whether a data stream is MP4's form of chapters, which the muxer writes itself."""
        from av.stream import Discard

        return bool(self._source.chapters()) and stream.type == "data" and stream.discard == Discard.all

    def _cover(self, index: int) -> bytes:
        """The bytes of a cover picture."""
        with ffmpeg_errors(self._path, "cannot be read"), open_source(self._path) as container:
            return bytes(next(container.demux(container.streams[index])))

    def _leave_out(self, stream: Stream, reason: str) -> None:
        self.left_out.append(f"{_described(stream)} {reason}")
        logger.warning("%s: its %s %s: left out", self._path, _described(stream), reason)

    def _wanted(self, streams: list[Stream]) -> Iterator[Packet[Stream]]:
        """The packets within the range, on the result's clock and addressed to its streams."""
        with ffmpeg_errors(self._path, "cannot be read to its end"):
            for packet in self._source.demux(*streams):
                if self._is_past(packet):
                    return
                if packet.size and self._shift(packet):
                    packet.stream = self._targets[packet.stream.index]
                    yield packet

    def _is_past(self, packet: Packet[Stream]) -> bool:
        if self._end is None or packet.dts is None:
            return False
        return packet.dts * packet.time_base >= self._end + LOOSENESS_SECONDS

    def _shift(self, packet: Packet[Stream]) -> bool:
        """Put a packet on the result's clock; False if it is outside of the result."""
        if _is_cover(packet.stream):
            packet.pts = packet.dts = 0
            return True
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None or (packet.is_discard and self._format not in HIDING_CONTAINERS):
            return False
        tick = packet.time_base
        if self._end is not None and pts * tick >= self._end:
            return False
        origin = round(self._origin / tick)
        early = max(0, origin - pts) if self._trimmed else 0
        if early and (packet.stream.type != "subtitle" or (packet.duration or 0) <= early):
            return False
        dts = packet.dts if packet.dts is not None else pts
        packet.pts, packet.dts = pts - origin + early, dts - origin + early
        if packet.stream.type == "subtitle" and packet.duration:
            packet.duration -= early
            if self._end is not None:
                packet.duration = min(packet.duration, round(self._end / tick) - pts - early)
        return True


def kept_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata without what describes the source's encoding and not its content."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in NOT_KEPT and not key.lower().startswith(("_statistics", "bps-", "number_of_"))
    }


def _reason_to_leave_out(stream: Stream) -> str | None:
    if stream.type == "video" and not _is_cover(stream):
        return "is a second video"
    # PyAV's stubs say that there is always a decoder; a codec unknown to FFmpeg has none.
    if stream.type in ("audio", "subtitle", "video") and getattr(stream, "codec_context", None) is None:
        return "has a codec that FFmpeg does not know"
    return None


def _takes(container: str, stream: Stream) -> bool:
    """Whether a container's muxer accepts a stream, tried in memory."""
    import av
    from av.error import FFmpegError

    if stream.type == "data" and stream.name is None:
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container) as scratch:
            scratch.add_stream_from_template(stream)
            scratch.start_encoding()
    except (FFmpegError, ValueError):
        return False
    return True


def _add_copy(output: OutputContainer, stream: Stream) -> Stream:
    copy = output.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(kept_metadata(stream.metadata))
    copy.disposition = stream.disposition
    return copy


def _is_cover(stream: Stream) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _described(stream: Stream) -> str:
    language = stream.metadata.get("language", "und")
    kind = {"audio": "sound", "subtitle": "subtitles"}.get(stream.type, stream.type)
    name = f" ({stream.name})" if getattr(stream, "name", None) else ""
    spoken = "" if language == "und" else f", language {language}"
    return f"{kind}{name} in stream {stream.index}{spoken}"


def _time_of(packet: Packet[Stream]) -> Fraction:
    return (packet.dts or 0) * packet.time_base
