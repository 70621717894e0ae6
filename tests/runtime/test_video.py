"""Video: times, copied streams, tags, ranges, damage. Clips are made here; each frame's number is its grey level."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MissingExtraError
from msan_runtime.video import VIDEO_SUFFIXES, VideoError, VideoOptions, VideoProgress, deblur_video

if TYPE_CHECKING:
    from av.container import Chapter

HEIGHT, WIDTH = 48, 64
MILLISECOND = Fraction(1, 1000)
STEADY = [(index * 40, 40) for index in range(12)]
VARIABLE = [(0, 100), (100, 50), (150, 400), (550, 33), (583, 100), (683, 2000)]
CODECS = {".mp4": "libx264", ".mov": "libx264", ".m4v": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}

Prepare = Callable[[OutputContainer, VideoStream], None]
Times = list[tuple[int, int]]


def level_of(index: int) -> int:
    """The grey level of a frame: far enough from its neighbours to be told apart after encoding."""
    return 20 + 15 * index


def nothing(output: OutputContainer, stream: VideoStream) -> None:
    del output, stream


def write_clip(
    path: Path,
    times: Times = STEADY,
    *,
    codec: str | None = None,
    options: dict[str, str] | None = None,
    prepare: Prepare = nothing,
    sound_from: int | None = None,
    subtitles: Times | None = None,
    b_frames: int = 0,
) -> None:
    """Write grey frames at the given (time, duration) in ms; sound and subtitles if asked for."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec or CODECS[path.suffix], rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        stream.codec_context.max_b_frames = b_frames
        prepare(output, stream)
        packets = list(video_packets(stream, times))
        packets += [] if sound_from is None else sound_packets(output, sound_from)
        packets += [] if subtitles is None else subtitle_packets(output, subtitles)
        output.start_encoding()
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            output.mux(packet)


def video_packets(stream: VideoStream, times: Times) -> Iterator[Any]:
    durations = dict(times)
    frames: list[av.VideoFrame | None] = []
    for index, (pts, duration) in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), level_of(index), np.uint8))
        frame.pts, frame.time_base, frame.duration = pts, MILLISECOND, duration
        frames.append(frame)
    for frame in [*frames, None]:
        for packet in stream.encode(frame):
            packet.duration = durations[packet.pts or 0]
            yield packet


def sound_packets(output: OutputContainer, start: int) -> list[Any]:
    """Half a second of noise, in AAC or Opus, from ``start`` in ms."""
    name, rate = ("libopus", 48_000) if output.format.name == "webm" else ("aac", 16_000)
    stream = output.add_stream(name, rate=rate, layout="mono", options={"flags": "+bitexact"})
    stream.metadata["language"] = "deu"
    kind, scale = ("fltp", 1.0) if name == "aac" else ("flt", 1.0)
    samples = np.random.default_rng(0).uniform(-0.3 * scale, 0.3 * scale, (1, rate // 2)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, start * rate // 1000, Fraction(1, rate)
    return [*stream.encode(frame), *stream.encode(None)]  # type: ignore[arg-type]


def subtitle_packets(output: OutputContainer, times: Times) -> list[Any]:
    stream = output.add_mux_stream("subrip", time_base=MILLISECOND)
    stream.metadata["language"] = "fra"
    stream.disposition = Disposition.forced
    packets: list[Any] = []
    for number, (start, duration) in enumerate(times):
        packet = av.Packet(f"line {number}".encode())
        packet.stream, packet.time_base = stream, MILLISECOND
        packet.pts = packet.dts = start
        packet.duration = duration
        packets.append(packet)
    return packets


def read_frames(path: Path) -> list[tuple[Fraction, int]]:
    """Time in seconds and grey level of each frame."""
    with av.open(str(path)) as source:
        return [(frame_time(frame), round(float(grey(frame).mean()))) for frame in source.decode(video=0)]


def frame_time(frame: av.VideoFrame) -> Fraction:
    assert frame.pts is not None
    assert frame.time_base is not None
    return frame.pts * frame.time_base


def grey(frame: av.VideoFrame) -> PictureArray:
    return frame.to_ndarray(format="gray", dst_color_range="JPEG")  # pyright: ignore[reportReturnType]


def packets_of(path: Path, index: int) -> list[tuple[Fraction, bytes]]:
    """Time in seconds and content of each packet of a stream."""
    with av.open(str(path)) as source:
        stream = source.streams[index]
        found = [packet for packet in source.demux(stream) if packet.size]
        return [((packet.pts or 0) * packet.time_base, bytes(packet)) for packet in found]


def open_both(source: Path, target: Path) -> tuple[InputContainer, InputContainer]:
    return av.open(str(source)), av.open(str(target))


def inverted(tiles: PictureArray) -> PictureArray:
    return 255 - tiles


def unchanged(tiles: PictureArray) -> PictureArray:
    return tiles


@pytest.fixture
def inverter(make_deblurrer: Callable[..., Deblurrer]) -> Deblurrer:
    return make_deblurrer(inverted, TileLimits(area_px=2**20))


@pytest.fixture
def identity(make_deblurrer: Callable[..., Deblurrer]) -> Deblurrer:
    return make_deblurrer(unchanged, TileLimits(area_px=2**20))


def check_inverted(source: Path, target: Path) -> None:
    """Every frame is there, at its time, and went through the network."""
    before, after = read_frames(source), read_frames(target)
    assert len(after) == len(before)
    for (time, level), (new_time, new_level) in zip(before, after, strict=True):
        assert abs(time - new_time) <= MILLISECOND / 2
        assert abs(new_level - (255 - level)) <= 2


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_every_frame_is_deblurred_and_keeps_its_time(tmp_path: Path, inverter: Deblurrer, suffix: str) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_clip(source)
    summary = deblur_video(inverter, source, target)
    check_inverted(source, target)
    assert (summary.frames, summary.damaged, summary.left_out) == (12, 0, ())
    assert summary.video_seconds == pytest.approx(0.48)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("first", "second"), [(".mp4", ".mp4"), (".mkv", ".mp4"), (".mkv", ".mkv"), (".webm", ".webm")]
)
def test_a_variable_rate_keeps_times_and_durations(
    tmp_path: Path, inverter: Deblurrer, first: str, second: str
) -> None:
    source, target = tmp_path / f"in{first}", tmp_path / f"out{second}"
    write_clip(source, VARIABLE)
    deblur_video(inverter, source, target)
    check_inverted(source, target)
    with av.open(str(target)) as written:
        durations = [frame.duration * frame.time_base for frame in written.decode(video=0) if frame.time_base]
        assert durations == [duration * MILLISECOND for _, duration in VARIABLE]
        assert written.duration == 2_683_000


def test_b_frames_come_out_in_the_order_shown(tmp_path: Path, inverter: Deblurrer) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source, b_frames=3)
    with av.open(str(source)) as made:
        shown = [packet.pts or 0 for packet in made.demux(video=0) if packet.size]
        assert shown != sorted(shown)
    deblur_video(inverter, source, target)
    check_inverted(source, target)


@pytest.mark.parametrize(("video_from", "sound_from"), [(0, 300), (500, 0), (200, 200)])
def test_video_and_sound_stay_in_step(tmp_path: Path, inverter: Deblurrer, video_from: int, sound_from: int) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source, [(start + video_from, length) for start, length in STEADY], sound_from=sound_from)
    deblur_video(inverter, source, target)
    check_inverted(source, target)
    before, after = packets_of(source, 1), packets_of(target, 1)
    assert [data for _, data in after] == [data for _, data in before]
    assert all(abs(one[0] - two[0]) <= MILLISECOND for one, two in zip(before, after, strict=True))


def test_sound_that_is_not_heard_does_not_delay_matroska(tmp_path: Path, inverter: Deblurrer) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mkv"
    write_clip(source, sound_from=0)
    with av.open(str(source)) as made:
        heard = [bytes(packet) for packet in made.demux(audio=0) if packet.size and not packet.is_discard]
    assert len(heard) == len(packets_of(source, 1)) - 1
    deblur_video(inverter, source, target)
    check_inverted(source, target)
    assert [data for _, data in packets_of(target, 1)] == heard


def test_a_transport_streams_clock_starts_at_zero(tmp_path: Path, inverter: Deblurrer) -> None:
    source, target = tmp_path / "in.ts", tmp_path / "out.mkv"
    write_clip(source, [(start + 5000, length) for start, length in STEADY], codec="libx264", sound_from=4900)
    deblur_video(inverter, source, target)
    first = read_frames(source)[0][0]
    assert first >= 5
    begin = read_frames(target)[0][0]
    expected = [float(time - first + begin) for time, _ in read_frames(source)]
    assert [float(time) for time, _ in read_frames(target)] == pytest.approx(expected, abs=0.001)
    with av.open(str(source)) as before, av.open(str(target)) as after:
        offset = [
            (clip.streams.video[0].start_time or 0) * (clip.streams.video[0].time_base or 0)
            - (clip.streams.audio[0].start_time or 0) * (clip.streams.audio[0].time_base or 0)
            for clip in (before, after)
        ]
        assert float(offset[1]) == pytest.approx(float(offset[0]), abs=0.0015)
        assert after.start_time == 0


def test_matroska_keeps_sound_subtitles_chapters_attachments_and_tags(tmp_path: Path, identity: Deblurrer) -> None:
    def prepare(output: OutputContainer, stream: VideoStream) -> None:
        output.metadata["title"] = "A drive"
        stream.metadata["title"] = "front camera"
        stream.disposition = Disposition.default | Disposition.original
        output.set_chapters(
            [
                {"id": 1, "start": 0, "end": 200, "time_base": MILLISECOND, "metadata": {"title": "One"}},
                {"id": 2, "start": 200, "end": 480, "time_base": MILLISECOND, "metadata": {"title": "Two"}},
            ]
        )
        output.add_attachment("font.ttf", "font/ttf", b"letters")

    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_clip(source, prepare=prepare, sound_from=0, subtitles=[(40, 100), (200, 150)])
    assert deblur_video(identity, source, target).left_out == ()
    before, after = open_both(source, target)
    with before, after:
        assert [stream.type for stream in after.streams] == [stream.type for stream in before.streams]
        assert after.metadata["title"] == "A drive"
        assert after.streams.video[0].metadata["title"] == "front camera"
        assert [stream.disposition for stream in after.streams] == [stream.disposition for stream in before.streams]
        assert [stream.language for stream in after.streams] == [stream.language for stream in before.streams]
        assert after.chapters() == before.chapters()
        kept = after.streams.attachments[0]
        assert (kept.name, kept.mimetype, kept.data) == ("font.ttf", "font/ttf", b"letters")
        copied = [stream.index for stream in before.streams if stream.type in ("audio", "subtitle")]
    for index in copied:
        assert packets_of(target, index) == packets_of(source, index)


def test_mp4_keeps_tags_of_phones_and_chapters(tmp_path: Path, identity: Deblurrer) -> None:
    tags = {
        "title": "A drive",
        "com.android.version": "14",
        "location": "+48.1000+011.5000/",
        "creation_time": "2024-05-06T07:08:09.000000Z",
    }

    def prepare(output: OutputContainer, stream: VideoStream) -> None:
        del stream
        output.metadata.update(tags)
        output.set_chapters([{"id": 1, "start": 0, "end": 480, "time_base": MILLISECOND, "metadata": {"title": "One"}}])

    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    with_table = {"movflags": "use_metadata_tags"}
    write_clip(
        source, prepare=lambda output, stream: (output.container_options.update(with_table), prepare(output, stream))[1]
    )
    assert deblur_video(identity, source, target).left_out == ()
    before, after = open_both(source, target)
    with before, after:
        assert before.metadata.items() >= tags.items()
        assert after.metadata.items() >= tags.items()
        assert after.chapters()[0]["metadata"] == {"title": "One"}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("turn", [90, 180, -90])
def test_a_phones_video_stays_upright(tmp_path: Path, identity: Deblurrer, turn: int, suffix: str) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    write_clip(source, STEADY[:2], prepare=lambda _, stream: stream.set_display_rotation(turn))
    deblur_video(identity, source, target)
    with av.open(str(source)) as before, av.open(str(target)) as after:
        old, new = next(before.decode(video=0)), next(after.decode(video=0))
        assert abs(old.rotation) == abs(turn)
        assert new.rotation == old.rotation
        assert (new.height, new.width) == (HEIGHT, WIDTH)


def test_pixels_that_are_not_square_stay_so(tmp_path: Path, identity: Deblurrer) -> None:
    def prepare(_: OutputContainer, stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    source = tmp_path / "in.mp4"
    write_clip(source, STEADY[:2], prepare=prepare)
    for suffix in (".mp4", ".mkv"):
        target = tmp_path / f"out{suffix}"
        deblur_video(identity, source, target)
        with av.open(str(target)) as written:
            assert written.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    with pytest.raises(VideoError, match="4:3"):
        deblur_video(identity, source, tmp_path / "out.webm")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cover_stays_a_cover(tmp_path: Path, identity: Deblurrer, suffix: str) -> None:
    picture = tmp_path / "cover.jpg"
    Image.new("RGB", (16, 16), "red").save(picture)

    def prepare(output: OutputContainer, stream: VideoStream) -> None:
        del stream
        with av.open(str(picture)) as cover:
            copy = output.add_stream_from_template(cover.streams.video[0], opaque=True)
            copy.disposition = Disposition.attached_pic
            packet = next(cover.demux(video=0))
            packet.stream = copy
            packet.pts = packet.dts = 0
            output.mux(packet)

    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    write_clip(source, STEADY[:3], prepare=prepare)
    assert deblur_video(identity, source, target).frames == 3
    with av.open(str(target)) as written:
        covers = [stream for stream in written.streams.video if stream.disposition & Disposition.attached_pic]
        assert len(covers) == 1
        assert bytes(next(written.demux(covers[0]))) == picture.read_bytes()


def test_sound_lies_beside_its_video_in_the_file(tmp_path: Path, identity: Deblurrer) -> None:
    source, target = tmp_path / "in.mkv", tmp_path / "out.mp4"
    write_clip(source, [(index * 1500, 1500) for index in range(16)], sound_from=6100)
    deblur_video(identity, source, target)
    with av.open(str(target)) as written:
        order = [(packet.stream.type, packet.pos or 0) for packet in written.demux() if packet.size]
    sound = [place for kind, place in order if kind == "audio"]
    video = [place for kind, place in order if kind == "video"]
    assert video[4] < min(sound) < max(sound) < video[7]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_range_is_exact_to_the_frame(tmp_path: Path, inverter: Deblurrer, suffix: str) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / "out.mp4"
    times = [(index * 100, 100) for index in range(16)]
    write_clip(source, times, codec="libx264", options={"g": "5"}, b_frames=2)
    with av.open(str(source)) as made:
        zero = Fraction(made.start_time or 0, 1_000_000)
    options = VideoOptions(start_seconds=1.2, end_seconds=1.5)
    summary = deblur_video(inverter, source, target, options)
    wanted = [255 - level for time, level in read_frames(source) if Fraction(6, 5) <= time - zero < Fraction(3, 2)]
    assert len(wanted) == 3
    assert [level for _, level in read_frames(target)] == pytest.approx(wanted, abs=2)
    assert [float(time) for time, _ in read_frames(target)] == pytest.approx([0, 0.1, 0.2], abs=0.001)
    assert summary.video_seconds == pytest.approx(0.3, abs=0.001)


def test_a_range_is_exact_where_the_index_leads_too_far(
    tmp_path: Path, identity: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source, [(index * 100, 100) for index in range(16)], options={"g": "5"})
    monkeypatch.setattr("msan_runtime.video.source.SEEK_MARGIN_SECONDS", Fraction(-1, 2))
    deblur_video(identity, source, target, VideoOptions(start_seconds=0.7, end_seconds=1.2))
    assert [level for _, level in read_frames(target)] == pytest.approx(
        [level_of(index) for index in range(7, 12)], abs=2
    )


def test_a_range_cuts_sound_subtitles_and_chapters(tmp_path: Path, identity: Deblurrer) -> None:
    def prepare(output: OutputContainer, stream: VideoStream) -> None:
        del stream
        first: Chapter = {"id": 1, "start": 0, "end": 160, "time_base": MILLISECOND, "metadata": {"title": "One"}}
        output.set_chapters([first, {**first, "id": 2, "start": 160, "end": 480}])

    source, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    write_clip(source, prepare=prepare, sound_from=0, subtitles=[(0, 60), (100, 100), (200, 300), (440, 40)])
    deblur_video(identity, source, target, VideoOptions(start_seconds=0.12, end_seconds=0.4))
    assert len(read_frames(target)) == 7
    kept = {data: time for time, data in packets_of(source, 1)}
    for time, data in packets_of(target, 1):
        assert time == kept[data] - Fraction(12, 100)
    expected = [data for time, data in packets_of(source, 1) if Fraction(12, 100) <= time < Fraction(4, 10)]
    assert [data for _, data in packets_of(target, 1)] == expected
    with av.open(str(target)) as written:
        shown = [(packet.pts, packet.duration, bytes(packet)) for packet in written.demux(subtitles=0) if packet.size]
        assert shown == [(0, 80, b"line 1"), (80, 200, b"line 2")]
        assert [(each["start"], each["end"]) for each in written.chapters()] == [
            (0, 40_000_000),
            (40_000_000, 280_000_000),
        ]


def test_a_range_without_frames_is_refused(tmp_path: Path, identity: Deblurrer) -> None:
    source = tmp_path / "in.mp4"
    write_clip(source)
    for options in (VideoOptions(start_seconds=3), VideoOptions(start_seconds=0.081, end_seconds=0.119)):
        with pytest.raises(VideoError, match="no frame between the start and the end"):
            deblur_video(identity, source, tmp_path / "out.mp4", options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crf": 64}, "crf 64"),
        ({"crf": -1}, "crf -1"),
        ({"start_seconds": -0.5}, "start time"),
        ({"end_seconds": float("nan")}, "end time"),
        ({"start_seconds": 2.0, "end_seconds": 2.0}, "not after the start"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(VideoError, match=match):
        VideoOptions(**options)


def test_damage_is_announced_and_the_times_stay(
    tmp_path: Path, identity: Deblurrer, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source, [(index * 40, 40) for index in range(15)], options={"g": "3", "crf": "1"})
    whole = read_frames(source)
    with av.open(str(source)) as made:
        hit = [packet for packet in made.demux(video=0) if packet.size][7]
    data = bytearray(source.read_bytes())
    assert hit.pos is not None
    data[hit.pos + 4 : hit.pos + hit.size] = b"\xff" * (hit.size - 4)
    source.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING, "msan_runtime"):
        summary = deblur_video(identity, source, target)
    assert summary.damaged >= 1
    # Threads of the decoder report some packets late, up to the last.
    near = re.search(r"near (?:(0\.\d+) s|its end): a frame cannot be decoded", caplog.text)
    assert "0.280 s: the frame is damaged" in caplog.text or (near and float(near[1] or 0.6) >= 0.28)
    kept = read_frames(target)
    assert summary.frames == len(kept)
    assert len(kept) >= 12
    assert {time for time, _ in kept} <= {time for time, _ in whole}
    assert kept[-1][0] == whole[-1][0]
    assert kept[-1][1] == pytest.approx(whole[-1][1], abs=1)


def test_a_video_that_is_cut_off_is_announced(
    tmp_path: Path, identity: Deblurrer, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in.mkv"
    write_clip(source, [(index * 500, 500) for index in range(12)], options={"crf": "1"})
    data = source.read_bytes()
    with av.open(str(source)) as made:
        cut = [packet for packet in made.demux(video=0) if packet.size][5].pos
    source.write_bytes(data[:cut])
    with caplog.at_level(logging.WARNING, "msan_runtime"):
        summary = deblur_video(identity, source, tmp_path / "out.mkv")
    assert 3 <= summary.frames <= 5
    assert "is it cut off?" in caplog.text


def test_what_is_no_video_is_refused(tmp_path: Path, identity: Deblurrer) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("This is no video. " * 50)
    song = tmp_path / "song.mp4"
    with av.open(str(song), "w") as output:
        packets = sound_packets(output, 0)
        output.mux(packets)
    picture = tmp_path / "picture.mp4"
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    for source, match in (
        (text, "not a video that FFmpeg can read"),
        (song, "no video stream"),
        (picture, "is a picture"),
        (tmp_path / "absent.mp4", "not a file"),
        (tmp_path, "not a file"),
    ):
        with pytest.raises(VideoError, match=match):
            deblur_video(identity, source, tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").exists()


def test_a_playlist_reads_no_other_file(tmp_path: Path, identity: Deblurrer) -> None:
    write_clip(tmp_path / "secret.mp4")
    playlist = tmp_path / "in.mkv"
    playlist.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(VideoError):
        deblur_video(identity, playlist, tmp_path / "out.mkv")


def test_the_source_is_never_written(tmp_path: Path, inverter: Deblurrer) -> None:
    source = tmp_path / "in.mp4"
    write_clip(source)
    before = source.read_bytes()
    other_name = tmp_path / "linked.mp4"
    os.link(source, other_name)
    for target in (source, other_name):
        with pytest.raises(VideoError, match="the source itself"):
            deblur_video(inverter, source, target)
    deblur_video(inverter, source, tmp_path / "out.mp4")
    assert source.read_bytes() == before


def test_an_interlaced_video_is_refused(tmp_path: Path, identity: Deblurrer) -> None:
    def prepare(_: OutputContainer, stream: VideoStream) -> None:
        stream.codec_context.flags |= Flags.interlaced_dct

    source = tmp_path / "in.mp4"
    write_clip(source, STEADY[:3], options={"x264-params": "interlaced=1:tff=1"}, prepare=prepare)
    with pytest.raises(VideoError, match=r"interlaced\. Deinterlace it first"):
        deblur_video(identity, source, tmp_path / "out.mp4")


def test_codecs_and_their_quality_are_checked(tmp_path: Path, identity: Deblurrer) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source, STEADY[:3])
    for options, match in (
        (VideoOptions(codec="libx999"), "Usable here: libx264, libx265"),
        (VideoOptions(codec="aac"), "no video encoder"),
        (VideoOptions(codec="mpeg4", crf=20), "mpeg4 has no crf"),
        (VideoOptions(crf=60), "0 .best. to 51"),
    ):
        with pytest.raises(VideoError, match=match):
            deblur_video(identity, source, target, options)
    with pytest.raises(VideoError, match="cannot hold video of the codec libx264"):
        deblur_video(identity, source, tmp_path / "out.webm", VideoOptions(codec="libx264"))
    assert deblur_video(identity, source, target, VideoOptions(codec="libx265", crf=30)).codec == "libx265"
    with av.open(str(target)) as written:
        assert written.streams.video[0].codec_context.codec.name == "hevc"
        assert written.streams.video[0].codec_context.codec_tag == "hvc1"


def test_sound_that_a_container_cannot_hold_is_refused(tmp_path: Path, identity: Deblurrer) -> None:
    source = tmp_path / "in.mp4"
    write_clip(source, sound_from=0)
    with pytest.raises(VideoError, match=r"its sound \(aac\) in stream 1, language deu cannot be stored in webm"):
        deblur_video(identity, source, tmp_path / "out.webm")
    with pytest.raises(VideoError, match=r"suffix \.gif"):
        deblur_video(identity, source, tmp_path / "out.gif")


def test_a_failure_leaves_the_old_file(tmp_path: Path, make_deblurrer: Callable[..., Deblurrer]) -> None:
    def failing(tiles: PictureArray) -> PictureArray:
        if tiles.mean() > level_of(5):
            raise RuntimeError("no more")
        return tiles

    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source)
    target.write_text("old")
    with pytest.raises(RuntimeError, match="no more"):
        deblur_video(make_deblurrer(failing, TileLimits(area_px=2**20)), source, target)
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_progress_counts_every_frame_and_may_stop_the_run(tmp_path: Path, identity: Deblurrer) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_clip(source)
    told: list[VideoProgress] = []
    deblur_video(identity, source, target, on_progress=told.append)
    assert [each.frames_done for each in told] == list(range(1, 13))
    assert {each.frames_total for each in told} == {12}
    assert told[-1].eta_seconds == 0
    assert all(each.fps > 0 for each in told)
    target.unlink()

    def stop(progress: VideoProgress) -> None:
        if progress.frames_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deblur_video(identity, source, target, on_progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def test_names_that_look_like_addresses_are_files(
    tmp_path: Path, inverter: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "in.mp4")
    (tmp_path / "in.mp4").rename("file:100%d.mp4")
    deblur_video(inverter, Path("file:100%d.mp4"), Path("http:out%d.mp4"))
    check_inverted(tmp_path / "file:100%d.mp4", tmp_path / "http:out%d.mp4")


def test_without_pyav_the_extra_is_named(tmp_path: Path, identity: Deblurrer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'msan\[video\]'"):
        deblur_video(identity, tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_the_suffixes_are_lower_case_and_start_with_a_dot() -> None:
    assert {".mp4", ".mov", ".mkv", ".webm", ".m4v"} <= VIDEO_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in VIDEO_SUFFIXES)
