"""PyAV: imported when a video comes, files opened with care, its errors in our words."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msan_runtime.errors import MissingExtraError
from msan_runtime.video.options import VideoError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

__all__ = ["ffmpeg_errors", "open_source", "require_pyav", "side_data_of"]

# FFmpeg also reads playlists (HLS, concat, DASH), which name other files: those are left out. The pictures are
# read so that they can be called what they are.
DEMUXERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "ivf", "obu", "yuv4mpegpipe"),
    *("flv", "asf", "mxf", "ogg", "dv", "rm", "gif", "apng", "nut"),
    *("jpeg_pipe", "png_pipe", "webp_pipe", "tiff_pipe"),
)


def require_pyav() -> None:
    """Check that PyAV is installed.

    Raises:
        MissingExtraError: if it is not.
    """
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError("av", "video")


def open_source(path: Path) -> InputContainer:
    """Open a video for reading; nothing but this local file is read, whatever is written in it.

    Raises:
        VideoError: if FFmpeg cannot read it.
    """
    import av

    # Made absolute because FFmpeg takes "a:b.mp4" for a protocol "a".
    with ffmpeg_errors(path, "is not a video that FFmpeg can read"):
        return av.open(
            str(path.absolute()),
            "r",
            container_options={"protocol_whitelist": "file", "format_whitelist": ",".join(DEMUXERS)},
            metadata_errors="replace",
        )


@contextmanager
def ffmpeg_errors(path: Path, what: str) -> Generator[None]:
    """Turn FFmpeg's errors in the block into a VideoError: "path what: FFmpeg's reason".

    Raises:
        VideoError: in the place of FFmpeg's errors.
    """
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise VideoError(f"{path} {what}: {error.strerror}") from error


def side_data_of(frame: VideoFrame) -> dict[str, bytes]:
    """What is attached to a frame besides its pixels, by FFmpeg's name of its kind."""
    # PyAV's stubs describe the keys of the motion vectors only.
    attached = cast("Any", frame.side_data)
    return {each.type.name: bytes(each) for each in attached}
