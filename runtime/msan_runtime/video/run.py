"""Deblurs a video: decoding, network and encoder at work at once, the result in place when it is whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msan_runtime.atomic import replacing
from msan_runtime.pipeline import overlapped
from msan_runtime.video.colour import ColourConverter, pixels_of
from msan_runtime.video.encoder import choose_encoding
from msan_runtime.video.library import require_pyav
from msan_runtime.video.options import VideoError, VideoOptions, VideoProgress, VideoSummary, container_of
from msan_runtime.video.source import VideoSource
from msan_runtime.video.target import VideoTarget

if TYPE_CHECKING:
    from av import VideoFrame

    from msan_runtime.deblur import Deblurrer

__all__ = ["deblur_video"]

logger = logging.getLogger(__name__)


def deblur_video(
    deblurrer: Deblurrer,
    source: Path,
    target: Path,
    options: VideoOptions | None = None,
    *,
    on_progress: Callable[[VideoProgress], None] | None = None,
) -> VideoSummary:
    """Deblur every frame of a video; everything else of the file is kept or said to be lost.

    Each frame keeps its time, also at a variable rate. Sound, subtitles, covers, attachments, chapters and
    tags are copied. More than 8 bits a value stay more than 8 bits, which takes a bundle with a float graph.
    The target appears when it is whole; memory does not depend on the video's length.

    Args:
        deblurrer: what runs the network, in the calling thread.
        source: the video; only read.
        target: where to write, in the container that the suffix names (VIDEO_SUFFIXES). An old file there
            is replaced.
        options: codec, quality and range.
        on_progress: called in this thread after each frame.

    Raises:
        VideoError: if the source is no video, is interlaced or cannot be stored as asked.
        MissingExtraError: if PyAV is not installed.
        BundleError: if the video has more than 8 bits a value and the bundle no float graph.
        OSError: if the target's folder cannot be written.
    """
    options = options or VideoOptions()
    require_pyav()
    container = container_of(target)
    _check_paths(source, target)
    started = time.perf_counter()
    with VideoSource(source, options) as video:
        if container == "avi" and video.container.format.name != "avi":
            raise VideoError(f"{target}: AVI has no times of single frames. Choose another target, such as .mp4")
        encoding = choose_encoding(options, container, video.first)
        if video.is_transparent:
            logger.warning("%s is transparent in places: that is not kept", source)
        colours = ColourConverter(video.first, encoding.pixel_format)
        with (
            replacing(target) as temporary,
            VideoTarget(
                temporary, container, video, encoding, colours, trimmed=options.start_seconds is not None
            ) as writer,
        ):
            _run(deblurrer, video, colours, writer, on_progress)
            writer.finish()
        return VideoSummary(
            frames=writer.frames,
            damaged=video.damaged + writer.damaged,
            video_seconds=writer.seconds,
            wall_seconds=time.perf_counter() - started,
            codec=encoding.codec,
            pixel_format=encoding.pixel_format.name,
            left_out=writer.left_out,
        )


def _run(
    deblurrer: Deblurrer,
    video: VideoSource,
    colours: ColourConverter,
    writer: VideoTarget,
    on_progress: Callable[[VideoProgress], None] | None,
) -> None:
    """Take the frames through the three stages; one thread decodes, this one computes, one encodes."""

    def deblurred(frame: VideoFrame) -> VideoFrame:
        pixels = pixels_of(frame)
        pixels[...] = deblurrer.deblur(np.ascontiguousarray(pixels))
        return frame

    total = video.frames_total
    started = time.perf_counter()
    # Closed before anything else when an exception passes: its threads use what the caller then closes.
    with closing(overlapped(video.frames(), before=colours.to_rgb, run=deblurred, after=writer.write)) as frames:
        for done, _ in enumerate(frames, start=1):
            if on_progress is not None:
                on_progress(_progress(done, total, time.perf_counter() - started))


def _progress(done: int, total: int | None, seconds: float) -> VideoProgress:
    fps = done / seconds if seconds > 0 else 0.0
    eta = None if total is None or fps == 0 else max(0, total - done) / fps
    return VideoProgress(frames_done=done, frames_total=total, fps=fps, eta_seconds=eta)


def _check_paths(source: Path, target: Path) -> None:
    """Refuse a source that is not there, and a target that is the source by any of its names."""
    if not source.is_file():
        raise VideoError(f"{source} is not a file. Check the path")
    if target.exists() and target.samefile(source):
        raise VideoError(f"{target} is the source itself. Choose another target")
