"""Colours of video: matrix, range, depth and size, checked against the formulas of BT.601, BT.709 and BT.2020."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.stream import VideoStream

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.video import VideoError, VideoOptions, deblur_video

HEIGHT, WIDTH = 64, 96
# H.273 code of the matrix, and its weights of red and blue in luma (BT.709 3.2, BT.601 2.5.1, BT.2020 table 4).
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2

Planes = list[npt.NDArray[np.float64]]


def waves() -> npt.NDArray[np.float64]:
    """A smooth picture of many colours, height × width × 3, 0 to 255."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green, blue = np.sin(columns / 12), np.cos(rows / 9), np.sin((rows + columns) / 15)
    return 128 + 60 * np.stack([red, green, blue], axis=-1)


def yuv_from_rgb(rgb: npt.NDArray[np.float64], matrix: int, full: bool, bits: int = 8) -> Planes:
    """Y', Cb, Cr at full resolution by the definition of H.273, from R'G'B' of 0 to 255."""
    of_red, of_blue = WEIGHTS[matrix]
    red, green, blue = np.moveaxis(rgb / 255, -1, 0)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    differences = ((blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red))
    scale = 2 ** (bits - 8)
    if full:
        top = 2**bits - 1
        return [luma * top, *(each * top + 128 * scale for each in differences)]
    return [(16 + 219 * luma) * scale, *((128 + 224 * each) * scale for each in differences)]


def frame_of(planes: Planes, pixel_format: str) -> av.VideoFrame:
    """A frame with these values; colour planes are averaged to the format's size."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    kind = np.dtype(np.uint16 if frame.format.components[0].bits > 8 else np.uint8)
    for values, plane in zip(planes, frame.planes, strict=True):
        down, across = -(-height // plane.height), -(-width // plane.width)
        padded = np.pad(values, ((0, -height % down), (0, -width % across)), mode="edge")
        small = padded.reshape(plane.height, down, plane.width, across).mean(axis=(1, 3))
        rows = np.frombuffer(cast("Any", plane), kind).reshape(plane.height, -1)
        rows.setflags(write=True)
        rows[:, : plane.width] = small.round()
    return frame


def planes_of(frame: av.VideoFrame) -> Planes:
    kind = np.dtype(np.uint16 if frame.format.components[0].bits > 8 else np.uint8)
    rows = [np.frombuffer(cast("Any", plane), kind).reshape(plane.height, -1) for plane in frame.planes]
    return [each[:, : plane.width].astype(np.float64) for each, plane in zip(rows, frame.planes, strict=True)]


def write_video(
    path: Path,
    frame: av.VideoFrame,
    *,
    codec: str = "libx264",
    matrix: int = 2,
    span: int = 0,
    transfer: int = 2,
    options: dict[str, str] | None = None,
) -> None:
    """Write three frames without loss, tagged with a matrix, a range and a transfer function."""
    lossless = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=error"}}
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={**lossless.get(codec, {}), **(options or {})})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        stream.colorspace, stream.color_range, stream.color_trc = matrix, span, transfer
        stream.color_primaries = 9 if matrix == 9 else matrix if matrix in (1, 5, 6) else 2
        for pts in range(3):
            frame.pts = pts
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def first_frame(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as source:
        return next(source.decode(video=0))


def psnr(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64], peak: float) -> float:
    return float(10 * np.log10(peak**2 / max(1e-9, float(np.mean((one - two) ** 2)))))


@pytest.fixture
def seen() -> list[PictureArray]:
    return []


@pytest.fixture
def watcher(make_deblurrer: Callable[..., Deblurrer], seen: list[PictureArray]) -> Deblurrer:
    """A deblurrer that changes nothing and keeps what it is shown."""

    def network(tiles: PictureArray) -> PictureArray:
        seen.append(tiles[0].copy())
        return tiles

    return make_deblurrer(network, TileLimits(area_px=2**20))


@pytest.mark.parametrize("span", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_the_network_sees_the_right_colours_and_the_result_has_them(
    tmp_path: Path, watcher: Deblurrer, seen: list[PictureArray], matrix: int, span: int, pixel_format: str
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    rgb = waves()
    frame = frame_of(yuv_from_rgb(rgb, matrix, span == FULL), pixel_format)
    write_video(source, frame, matrix=matrix, span=span)
    deblur_video(watcher, source, target, VideoOptions(crf=1))
    assert psnr(seen[0].astype(np.float64), rgb, 255) > 42
    assert np.abs((seen[0] - rgb).mean(axis=(0, 1))).max() < 0.75
    before, after = first_frame(source), first_frame(target)
    values = list(zip(planes_of(before), planes_of(after), strict=True))
    assert psnr(*values[0], 255) > 48
    assert all(psnr(*pair, 255) > 44 for pair in values[1:])
    assert all(abs(float((new - old).mean())) < 0.75 for old, new in values)
    tags = ("colorspace", "color_range", "color_primaries", "color_trc")
    assert [getattr(after, tag) for tag in tags] == [getattr(before, tag) for tag in tags]
    # FFmpeg's H.264 decoder calls full range a pixel format of its own.
    assert after.format.name.replace("yuvj", "yuv") == pixel_format


@pytest.mark.parametrize(("height", "matrix"), [(96, 6), (720, 1)])
def test_a_video_without_tags_is_taken_as_players_take_it(
    tmp_path: Path, watcher: Deblurrer, seen: list[PictureArray], height: int, matrix: int
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    rgb = np.broadcast_to(np.array([180.0, 90.0, 60.0]), (height, 64, 3))
    write_video(source, frame_of(yuv_from_rgb(rgb, matrix, full=False), "yuv420p"))
    deblur_video(watcher, source, target)
    assert np.abs(seen[0] - rgb).max() <= 2
    assert first_frame(target).colorspace == 2


@pytest.mark.parametrize(
    ("suffix", "codec", "stored"), [(".mp4", "libx265", "yuv420p10le"), (".webm", "libsvtav1", "yuv420p10le")]
)
def test_ten_bits_stay_ten_bits(
    tmp_path: Path,
    watcher: Deblurrer,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    codec: str,
    stored: str,
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    rgb = waves()
    pq = 16
    frame = frame_of(yuv_from_rgb(rgb, 9, full=False, bits=10), "yuv420p10le")
    write_video(source, frame, codec="libx265", matrix=9, span=LIMITED, transfer=pq)
    shown: list[PictureArray] = []

    def deblur(picture: PictureArray) -> PictureArray:
        shown.append(picture.copy())
        return picture

    monkeypatch.setattr(watcher, "deblur", deblur)
    summary = deblur_video(watcher, source, target, VideoOptions(crf=1))
    assert (summary.codec, summary.pixel_format) == (codec, stored)
    assert shown[0].dtype == np.uint16
    assert psnr(shown[0] / 257, rgb, 255) > 46
    before, after = first_frame(source), first_frame(target)
    assert (after.color_trc, after.colorspace, after.color_range) == (pq, 9, LIMITED)
    values = list(zip(planes_of(before), planes_of(after), strict=True))
    assert all(psnr(*pair, 1023) > 46 for pair in values)
    # Values between those of 8 bits are really there.
    assert len(np.unique(planes_of(after)[0] % 4)) == 4


def test_hdr_mastering_data_is_kept_by_x265(
    tmp_path: Path, watcher: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    frame = frame_of(yuv_from_rgb(waves(), 9, full=False, bits=10), "yuv420p10le")
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    parameters = f"log-level=error:master-display={display}:max-cll=1000,400"
    write_video(source, frame, codec="libx265", matrix=9, transfer=16, options={"x265-params": parameters})
    monkeypatch.setattr(watcher, "deblur", lambda picture: picture)  # pyright: ignore[reportUnknownArgumentType]
    deblur_video(watcher, source, target)

    def hdr(path: Path) -> dict[str, bytes]:
        data = cast("Any", first_frame(path).side_data)
        return {each.type.name: bytes(each) for each in data if "SEI" not in each.type.name}

    assert hdr(source).keys() == {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"}
    assert hdr(target) == hdr(source)


@pytest.mark.parametrize(
    ("first", "suffix", "stored"),
    [("yuv444p", ".mp4", "yuv444p"), ("yuv420p", ".webm", "yuv420p"), ("yuv420p", ".mp4", "yuv444p")],
)
def test_odd_sizes_keep_every_pixel(tmp_path: Path, watcher: Deblurrer, first: str, suffix: str, stored: str) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / f"out{suffix}"
    rgb = waves()[:63, :95]
    write_video(source, frame_of(yuv_from_rgb(rgb, 1, full=False), first), codec="ffv1", matrix=1)
    deblur_video(watcher, source, target, VideoOptions(crf=1))
    before, after = first_frame(source), first_frame(target)
    assert (after.height, after.width) == (63, 95)
    assert after.format.name == stored
    assert psnr(planes_of(before)[0], planes_of(after)[0], 255) > 44


def test_grey_stays_grey(tmp_path: Path, watcher: Deblurrer) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_video(source, frame_of([waves()[..., 0]], "gray"), codec="ffv1", span=FULL)
    assert deblur_video(watcher, source, target, VideoOptions(crf=1)).pixel_format == "gray"
    before, after = planes_of(first_frame(source)), planes_of(first_frame(target))
    assert len(before) == 1
    assert psnr(before[0], after[0], 255) > 46
    # The H.264 decoder gives grey video as colour video without colour.
    assert all((plane == 128).all() for plane in after[1:])


def test_rgb_and_its_transparency(
    tmp_path: Path, watcher: Deblurrer, seen: list[PictureArray], caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "in.mov", tmp_path / "out.mov"
    rgb = waves().round().astype(np.uint8)
    rgba = np.dstack([rgb, np.full((HEIGHT, WIDTH), 128, np.uint8)])
    write_video(source, av.VideoFrame.from_ndarray(rgba, "rgba").reformat(format="argb"), codec="qtrle")
    with caplog.at_level(logging.WARNING, "msan_runtime"):
        deblur_video(watcher, source, target, VideoOptions(crf=1))
    assert "transparent in places: that is not kept" in caplog.text
    assert (seen[0] == rgb).all()
    after = first_frame(target)
    assert (after.format.name, after.colorspace, after.color_range) == ("yuv444p", 1, LIMITED)
    assert psnr(planes_of(after)[0], yuv_from_rgb(rgb.astype(np.float64), 1, full=False)[0], 255) > 44


def test_lost_depth_and_colour_are_announced(
    tmp_path: Path, watcher: Deblurrer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in.mp4"
    write_video(source, frame_of(yuv_from_rgb(waves(), 1, full=False, bits=10), "yuv444p10le"), codec="libx265")
    monkeypatch.setattr(watcher, "deblur", lambda picture: picture)  # pyright: ignore[reportUnknownArgumentType]
    with caplog.at_level(logging.WARNING, "msan_runtime"):
        deblur_video(watcher, source, tmp_path / "out.webm", VideoOptions(codec="libvpx-vp9"))
    assert "libvpx-vp9 stores 8 of 10 bits a value" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "msan_runtime"):
        deblur_video(watcher, source, tmp_path / "out.mkv", VideoOptions(codec="mpeg4"))
    assert "mpeg4 stores less colour than the source has: yuv444p10le as yuv420p" in caplog.text


def test_frames_that_change_their_size_are_refused(tmp_path: Path, watcher: Deblurrer) -> None:
    parts: list[bytes] = []
    for size in (HEIGHT, HEIGHT // 2):
        part = tmp_path / f"{size}.ts"
        write_video(part, frame_of([each[:size] for each in yuv_from_rgb(waves(), 1, full=False)], "yuv420p"))
        parts.append(part.read_bytes())
    source = tmp_path / "in.ts"
    source.write_bytes(b"".join(parts))
    with pytest.raises(VideoError, match=r"size changes from 64×96 to 32×96 pixels"):
        deblur_video(watcher, source, tmp_path / "out.mp4")


def test_a_matrix_that_is_not_linear_is_refused(tmp_path: Path, watcher: Deblurrer) -> None:
    source = tmp_path / "in.mp4"
    write_video(source, frame_of(yuv_from_rgb(waves(), 1, full=False), "yuv420p"), matrix=8)
    with pytest.raises(VideoError, match=r"code 8"):
        deblur_video(watcher, source, tmp_path / "out.mp4")
