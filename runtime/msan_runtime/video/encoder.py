"""Which encoder stores a video, in which pixel format, at which quality."""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msan_runtime.video.colour import bits_of, has_alpha
from msan_runtime.video.library import side_data_of
from msan_runtime.video.options import VideoError, VideoOptions

if TYPE_CHECKING:
    from av import Codec, VideoFrame
    from av.video.format import VideoFormat

__all__ = ["Encoding", "choose_encoding"]

logger = logging.getLogger(__name__)

# Encoders that are known to work here, the first ones preferred, by what a container stores.
ENCODERS_OF_CONTAINER = {
    "mp4": ("libx264", "libx265", "libsvtav1"),
    "mov": ("libx264", "libx265", "prores_ks"),
    "matroska": ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "ffv1"),
    "webm": ("libvpx-vp9", "libsvtav1"),
    "avi": ("libx264", "mpeg4", "mjpeg", "ffv1"),
}
# H.264 with more than 8 bits plays hardly anywhere; PyAV's VP9 encoder has none.
DEEP_ENCODER_OF_CONTAINER = {"webm": "libsvtav1", "avi": "ffv1"}
DEFAULT_CRF = {"libx264": 16, "libx264rgb": 16, "libx265": 18, "libvpx-vp9": 20, "libsvtav1": 20}
HIGHEST_CRF = {"libx264": 51, "libx264rgb": 51, "libx265": 51}
EXTRA_OPTIONS = {
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "2"},
    "libsvtav1": {"preset": "6"},
    # A constant quantiser of 2, in FFmpeg's unit of 1/118; the encoder's own default is a bit rate.
    "mpeg4": {"flags": "+qscale", "global_quality": "236"},
    "mjpeg": {"flags": "+qscale", "global_quality": "236"},
}
# Encoders that take an odd height or width although they halve the colour planes.
ODD_SIZES = frozenset({"libvpx-vp9", "ffv1"})


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the frames are stored.

    Attributes:
        codec: the encoder's name.
        pixel_format: what it stores.
        options: the encoder's options.
    """

    codec: str
    pixel_format: VideoFormat
    options: dict[str, str]


def choose_encoding(options: VideoOptions, container: str, first: VideoFrame) -> Encoding:
    """Choose how to store a video like ``first``; what cannot be stored as it is, is said in a warning.

    Raises:
        VideoError: if the codec or its crf cannot be, or the codec cannot store such frames.
    """
    name = options.codec or _default_codec(container, first.format)
    codec = _codec(name, container)
    pixel_format = _pixel_format(codec, first)
    settings = {**EXTRA_OPTIONS.get(name, {}), **_quality(codec, options.crf)}
    if name == "libx265":
        settings["x265-params"] = ":".join(["log-level=error", *_hdr_parameters(first)])
    _announce_lost_side_data(name, first)
    return Encoding(codec=name, pixel_format=pixel_format, options=settings)


def _default_codec(container: str, source: VideoFormat) -> str:
    if bits_of(source) > 8:
        return DEEP_ENCODER_OF_CONTAINER.get(container, "libx265")
    return ENCODERS_OF_CONTAINER[container][0]


def _codec(name: str, container: str) -> Codec:
    """The encoder of that name.

    Raises:
        VideoError: if this PyAV has none, or it is no video encoder.
    """
    from av.codec.codec import Codec, UnknownCodecError, codecs_available

    try:
        codec = Codec(name, "w")
    except UnknownCodecError:
        codec = None
    if codec is None or codec.type != "video":
        usable = ", ".join(known for known in ENCODERS_OF_CONTAINER[container] if known in codecs_available)
        raise VideoError(f"{name} is no video encoder of this FFmpeg. Usable here: {usable}")
    return codec


def _quality(codec: Codec, crf: int | None) -> dict[str, str]:
    """The quality option; none for an encoder that knows no crf.

    Raises:
        VideoError: if a crf is asked for that the encoder cannot take.
    """
    if crf is None:
        return {"crf": str(DEFAULT_CRF[codec.name])} if codec.name in DEFAULT_CRF else {}
    known = {option.name for option in codec.create("video").supported_options.private}
    if "crf" not in known:
        raise VideoError(f"the encoder {codec.name} has no crf. Leave it out, or choose another codec")
    highest = HIGHEST_CRF.get(codec.name, 63)
    if crf > highest:
        raise VideoError(f"crf {crf} is out of range for {codec.name}: 0 (best) to {highest}")
    return {"crf": str(crf)}


def _pixel_format(codec: Codec, first: VideoFrame) -> VideoFormat:
    """The encoder's pixel format nearest to the frame's: as many bits and colour samples as it can.

    Raises:
        VideoError: if the encoder cannot store frames of this size.
    """
    from av.codec.codec import PixFmtLoss, find_best_pix_fmt_of_list

    wanted = first.format.name
    if codec.name not in ODD_SIZES and _halves_odd(first.format, first):
        wanted = "yuv444p10le" if bits_of(first.format) > 8 else "yuv444p"
    found, loss = find_best_pix_fmt_of_list(_storable(codec), wanted)
    if found is None:
        raise VideoError(f"the encoder {codec.name} stores no pixels that can be made here. Choose another codec")
    if codec.name not in ODD_SIZES and _halves_odd(found, first):
        raise VideoError(f"{codec.name} cannot store {first.height}×{first.width} pixels: it needs even sizes")
    if bits_of(found) < bits_of(first.format):
        logger.warning("%s stores %d of %d bits a value", codec.name, bits_of(found), bits_of(first.format))
    # FFmpeg counts a smaller colour plane as lost resolution, and a missing one as lost chroma.
    if loss & (PixFmtLoss.RESOLUTION | PixFmtLoss.CHROMA):
        logger.warning("%s stores less colour than the source has: %s as %s", codec.name, wanted, found.name)
    return found


def _storable(codec: Codec) -> list[VideoFormat]:
    """The encoder's pixel formats that swscale makes: planar or packed, without alpha, not of a device.

    The ``yuvj`` formats are left out: the range is a property of the stream. The half-planar ones (nv12)
    store the same as the planar ones.
    """
    formats = codec.video_formats or []
    kept = [each for each in formats if not each.name.startswith(("yuvj", "nv", "p0", "p2")) and each.components]
    return [each for each in kept if not has_alpha(each)]


def _halves_odd(pixel_format: VideoFormat, frame: VideoFrame) -> bool:
    """Whether a frame's height or width is odd where the format has one colour sample for two pixels."""
    wide = frame.width % 2 == 1 and pixel_format.chroma_width(16) != 16
    high = frame.height % 2 == 1 and pixel_format.chroma_height(16) != 16
    return wide or high


def _hdr_parameters(first: VideoFrame) -> list[str]:
    """x265's words for the mastering display and the light levels that a frame names."""
    found = side_data_of(first)
    parameters: list[str] = []
    mastering = found.get("MASTERING_DISPLAY_METADATA")
    if mastering:
        parameters += _mastering_parameter(mastering)
    light = found.get("CONTENT_LIGHT_LEVEL")
    if light:
        parameters.append("max-cll={},{}".format(*struct.unpack("2I", light[:8])))
    return parameters


def _mastering_parameter(data: bytes) -> list[str]:
    """libavutil's AVMasteringDisplayMetadata as x265 takes it: 1/50000 of chromaticity, 1/10000 cd/m²."""
    numbers = struct.unpack("20i2i", data[:88])
    if not (numbers[20] and numbers[21]):
        return []
    values = [top / bottom if bottom else 0.0 for top, bottom in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y = (round(value * 50_000) for value in values[:8])
    darkest, brightest = (round(value * 10_000) for value in values[8:])
    colours = f"G({green_x},{green_y})B({blue_x},{blue_y})R({red_x},{red_y})WP({white_x},{white_y})"
    return [f"master-display={colours}L({brightest},{darkest})"]


def _announce_lost_side_data(codec: str, first: VideoFrame) -> None:
    """Say which HDR data of the source the encoder will not write."""
    words = {"DOVI_METADATA": "Dolby Vision", "DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+"}
    if codec != "libx265":
        words |= {"MASTERING_DISPLAY_METADATA": "mastering display", "CONTENT_LIGHT_LEVEL": "light level"}
    lost = sorted({words[kind] for kind in side_data_of(first) if kind in words})
    if lost:
        logger.warning("%s data of the source is not kept", " and ".join(lost))
