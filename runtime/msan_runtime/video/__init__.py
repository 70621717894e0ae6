"""Video: every frame deblurred at its own time, sound, subtitles, orientation and colour as they were."""

from __future__ import annotations

from msan_runtime.video.options import VIDEO_SUFFIXES, VideoError, VideoOptions, VideoProgress, VideoSummary
from msan_runtime.video.run import deblur_video

__all__ = ["VIDEO_SUFFIXES", "VideoError", "VideoOptions", "VideoProgress", "VideoSummary", "deblur_video"]
