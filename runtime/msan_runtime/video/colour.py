"""Pixels of video frames as RGB for the network, and back, by the matrix and range of the video.

Colours go through swscale with the matrix (BT.601, BT.709, BT.2020) and the range (limited, full) named
explicitly: left to itself it takes BT.601 for every RGB picture. Of its filters, bicubic with accurate
rounding and full chroma resolution is the one under which luma comes back exactly; the faster defaults
darken it by one level, and bilinear with accurate rounding garbles 10-bit frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from msan_runtime.video.options import VideoError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat

    from msan_runtime.contract import PictureArray

__all__ = ["FULL", "UNSPECIFIED", "ColourConverter", "bits_of", "has_alpha", "pixels_of"]

# AVColorRange; and what AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic call unknown
# (libavutil/pixfmt.h; ITU-T H.273).
LIMITED = 1
FULL = 2
UNSPECIFIED = 2
# H.273 matrix to swscale's number of it; the two constant-luminance ones and YCgCo are not linear or not its own.
SWSCALE_OF_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}


def pixels_of(frame: VideoFrame) -> PictureArray:
    """The pixels of an RGB frame, height × width × 3, uint8 or uint16: its own memory, to be written too."""
    return cast("PictureArray", frame.to_ndarray())


def bits_of(pixel_format: VideoFormat) -> int:
    """Bits of the deepest component."""
    return max(component.bits for component in pixel_format.components)


def has_alpha(pixel_format: VideoFormat) -> bool:
    """Whether a pixel format carries transparency."""
    return any(component.is_alpha for component in pixel_format.components)


class ColourConverter:
    """Turns frames of one video into RGB frames, and these into frames of the target's pixel format.

    Args:
        first: a decoded frame; the matrix and the range of the video are read from it.
        target_format: pixel format of the frames to be encoded.

    Attributes:
        matrix: H.273 code of the matrix used, also where the video does not name one.
        source_range, target_range: LIMITED or FULL, as AVColorRange.

    Raises:
        VideoError: for a matrix that cannot be converted.
    """

    def __init__(self, first: VideoFrame, target_format: VideoFormat) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.matrix = _matrix_of(first)
        self.source_range = _range_of(first)
        self.target_range = FULL if target_format.is_rgb else LIMITED if first.format.is_rgb else self.source_range
        self._target_format = target_format.name
        self._rgb_format = "rgb48le" if bits_of(first.format) > 8 else "rgb24"
        self._flags = (
            Interpolation.BICUBIC
            | Interpolation.ACCURATE_RND
            | Interpolation.FULL_CHR_H_INT
            | Interpolation.FULL_CHR_H_INP
        )
        # One for each direction: they work in different threads.
        self._to_rgb = VideoReformatter()
        self._from_rgb = VideoReformatter()

    def to_rgb(self, frame: VideoFrame) -> VideoFrame:
        """An RGB frame (rgb24, or rgb48 for more than 8 bits) with the time and side data of ``frame``."""
        rgb = self._to_rgb.reformat(
            frame,
            format=self._rgb_format,
            src_colorspace=SWSCALE_OF_MATRIX[self.matrix],
            src_color_range=self.source_range,
            dst_color_range=FULL,
            interpolation=self._flags,
            threads=1,
        )
        # An 8-bit RGB source needs no conversion and comes back itself, in memory that the decoder still uses.
        rgb.make_writable()
        return rgb

    def from_rgb(self, frame: VideoFrame) -> VideoFrame:
        """A frame to be encoded from an RGB frame."""
        return self._from_rgb.reformat(
            frame,
            format=self._target_format,
            src_color_range=FULL,
            dst_colorspace=SWSCALE_OF_MATRIX[self.matrix],
            dst_color_range=self.target_range,
            interpolation=self._flags,
            threads=1,
        )


def _matrix_of(frame: VideoFrame) -> int:
    """The matrix of a frame; where none is named, the one that players assume for its size."""
    matrix = int(frame.colorspace)
    if matrix in SWSCALE_OF_MATRIX:
        return matrix
    if frame.format.is_rgb:
        return 1
    if matrix != UNSPECIFIED:
        raise VideoError(
            f"the colour matrix with the H.273 code {matrix} is not supported. Convert the video to BT.709"
        )
    return 1 if frame.width >= 1280 or frame.height > 576 else 6


def _range_of(frame: VideoFrame) -> int:
    """The range of a frame's values; without a word of it, full for RGB and JPEG formats, else limited."""
    if frame.color_range in (LIMITED, FULL):
        return int(frame.color_range)
    return FULL if frame.format.is_rgb or frame.format.name.startswith("yuvj") else LIMITED
