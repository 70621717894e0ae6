"""``msan deblur`` on folders: options, runs that go on, and kills at any moment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.in_process import Command, in_process

from msan_runtime.atomic import remove_abandoned, replacing
from msan_runtime.contract import PictureArray
from msan_runtime.image import read_picture
from msan_runtime.journal import JOURNAL_NAME, Journal, Run

Noise = Callable[..., PictureArray]
MSAN = "import msan_runtime.cli as cli; cli.entry_points = lambda **_: (); cli.main()"
"""The command as the lean install has it, which starts quickly."""


@pytest.fixture
def deblur(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle_folder: Path
) -> Iterator[Command]:
    """Runs ``msan deblur`` in this process with a bundle that inverts, on the CPU."""
    with in_process(monkeypatch, capsys, lean=True) as msan:
        yield lambda *arguments: msan("deblur", *arguments, "--bundle", bundle_folder, "--backend", "ort-cpu")


@pytest.fixture
def album(tmp_path: Path, noise: Noise) -> Path:
    """A folder of two pictures and one below."""
    folder = tmp_path / "album"
    for number, name in enumerate(("a.png", "b.png", "day/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(6 + number, 8, 3)).save(folder / name)
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def done_lines(out: Path) -> list[str]:
    """Targets that the journal notes as done, one for each time."""
    rows = (out / JOURNAL_NAME).read_bytes().split(b"\n")[1:-1]
    return [entry["target"] for row in rows if "target" in (entry := json.loads(row))]


def test_a_second_run_does_only_what_is_new(deblur: Command, album: Path, tmp_path: Path, noise: Noise) -> None:
    out = tmp_path / "out"
    assert deblur(album, "-o", out).out == f"3 of 3 pictures deblurred to {out}\n"
    before = {name: (out / name).stat().st_mtime_ns for name in ("a.png", "b.png", "day/c.png")}
    Image.fromarray(noise(9, 9, 3)).save(album / "b.png")
    Image.fromarray(noise(9, 9, 3)).save(album / "new.png")
    assert deblur(album, "-o", out).out == f"4 of 4 pictures deblurred to {out} (2 of them before)\n"
    assert [(out / name).stat().st_mtime_ns == time_ns for name, time_ns in before.items()] == [True, False, True]
    assert Counter(done_lines(out)) == Counter({"a.png": 1, "b.png": 2, "day/c.png": 1, "new.png": 1})
    assert np.array_equal(read_picture(out / "b.png").pixels, 255 - noise(9, 9, 3))


def test_names_formats_and_comparisons(deblur: Command, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = deblur(album, "-o", out, "--name", "{stem}-{model}{suffix}", "--format", "tif", "--compare")
    assert finished.code == 0
    expected = {f"{stem}-tiny.{end}" for stem in ("a", "b", "day/c") for end in ("tif", "compare.png")}
    assert files_in(out) == expected | {JOURNAL_NAME}


def test_results_beside_their_sources_are_no_inputs_of_the_next_run(deblur: Command, album: Path) -> None:
    arguments = (album, "-o", album, "--name", "{stem}-sharp{suffix}", "--compare")
    assert deblur(*arguments).out.startswith("3 of 3 pictures")
    after_one = files_in(album)
    assert len(after_one) == 3 + 3 + 3 + 1
    assert deblur(*arguments).out.endswith("(3 of them before)\n")
    assert files_in(album) == after_one


def test_results_of_before_a_restart_are_no_inputs_either(deblur: Command, album: Path) -> None:
    arguments = (album, "-o", album, "--name", "{stem}-sharp{suffix}")
    assert deblur(*arguments, "--compare").code == 0
    before = files_in(album)
    added = {"a-sharp.webp", "b-sharp.webp", "day/c-sharp.webp"}
    assert deblur(*arguments, "--format", "webp", "--restart").out.startswith("3 of 3 pictures")
    assert deblur(*arguments, "--format", "webp").out.endswith("(3 of them before)\n")
    assert files_in(album) == before | added


def test_a_result_that_a_kill_kept_from_the_journal_is_no_input(deblur: Command, album: Path) -> None:
    arguments = (album, "-o", album, "--name", "{stem}-sharp{suffix}")
    assert deblur(*arguments).code == 0
    rows = (album / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    (album / JOURNAL_NAME).write_bytes(b"".join(rows[:-1]))
    assert "target" in json.loads(rows[-1])
    assert deblur(*arguments).out.endswith("(2 of them before)\n")
    assert len(files_in(album)) == 3 + 3 + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--quality", "80"), "--quality by default, now 80"),
        (("--compare",), "--compare off, now on"),
        (("--tile", "64x64"), "--tile by default, now 64x64"),
    ],
)
def test_other_settings_are_refused_until_told_to_restart(
    arguments: tuple[str, ...], words: str, deblur: Command, album: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert deblur(album, "-o", out).code == 0
    finished = deblur(album, "-o", out, *arguments)
    assert finished.code == 2
    assert f"error: {out} holds results with other settings: {words}. Give --restart" in finished.err
    assert deblur(album, "-o", out, *arguments, "--restart").out == f"3 of 3 pictures deblurred to {out}\n"


def test_one_picture_leaves_no_journal(deblur: Command, album: Path, tmp_path: Path) -> None:
    for quality in ("70", "80"):
        assert deblur(album / "a.png", "-o", tmp_path / "out", "--quality", quality).code == 0
    assert files_in(tmp_path / "out") == {"a.png"}


def test_a_run_beside_another_is_refused(deblur: Command, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Journal.open(out, Run(model="tiny", model_sha256="0")):
        finished = deblur(album, "-o", out)
    assert finished.code == 2
    assert f"error: another run is writing to {out}" in finished.err
    assert files_in(out) == {JOURNAL_NAME}


def test_many_failures_are_told_at_the_end_the_first_twenty_by_name(
    deblur: Command, album: Path, tmp_path: Path
) -> None:
    for number in range(25):
        (album / f"bad{number:02}.jpg").write_text("no picture")
    out = tmp_path / "out"
    finished = deblur(album, "-o", out)
    assert finished.code == 1
    assert finished.out == f"3 of 28 pictures deblurred to {out}\n"
    told = [line for line in finished.err.splitlines() if line.startswith("error: ")]
    assert len(told) == 21
    assert all(f"bad{number:02}.jpg is not a JPEG" in line for number, line in enumerate(told[:20]))
    assert told[20] == f"error: … and 5 more, with their reasons in {out / JOURNAL_NAME}"
    rows = [json.loads(row) for row in (out / JOURNAL_NAME).read_bytes().splitlines()]
    assert sum("is not a JPEG" in row.get("error", "") for row in rows) == 25


def test_stats_tell_how_busy_the_network_was(deblur: Command, album: Path, tmp_path: Path) -> None:
    finished = deblur(album, "-o", tmp_path / "out", "--stats")
    assert "% of " in finished.out.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tile", "big"), "'big' is no size"),
        (("--memory", "lots"), "'lots' is no amount of memory"),
        (("--start", "noon"), "'noon' is no time"),
        (("--start", "9", "--end", "8"), "the end time, 8.0 s, is not after the start"),
        (("--name", "{when}{suffix}"), "has a field {when}"),
        (("--format", "gif"), "no format 'gif'"),
    ],
)
def test_bad_values_are_refused_before_any_work(
    arguments: tuple[str, ...], words: str, deblur: Command, album: Path, tmp_path: Path
) -> None:
    finished = deblur(album, "-o", tmp_path / "out", *arguments)
    assert finished.code == 2
    assert words in finished.err
    assert "Traceback" not in finished.err
    assert not (tmp_path / "out").exists()


def test_the_help_lists_options_in_groups(deblur: Command) -> None:
    text = deblur("--help").out
    places = [text.index(title) for title in ("Options:", "Model:", "Folders:", "Pictures:", "Videos:", "Memory and")]
    assert places == sorted(places)


# What kills leave behind


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks on files that are being replaced")
def test_what_a_kill_left_is_removed_and_nothing_else(deblur: Command, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    strangers = {".msan-notes.tmp", ".a.png.abcdefgh.tmp", "mine.tmp", "elsewhere/.msan-a.png.0123456789abcdef.tmp"}
    ours = {".msan-a.png.0123456789abcdef.tmp", "day/.msan-c.png.fedcba9876543210.tmp"}
    for name in strangers | ours:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("half")
    with replacing(out / "other.png") as being_written:
        assert deblur(album, "-o", out).code == 0
        assert files_in(out) == strangers | {"a.png", "b.png", "day/c.png", JOURNAL_NAME, being_written.name}
    remove_abandoned(out)
    assert (out / "other.png").exists()
    remove_abandoned(tmp_path / "no such folder")


class Killed:
    """Runs of the command on one folder, killed when they have done a little."""

    def __init__(self, source: Path, out: Path, bundle: Path) -> None:
        self._command = [
            sys.executable,
            "-c",
            MSAN,
            "deblur",
            source,
            "-o",
            out,
            "--bundle",
            bundle,
            "--backend",
            "ort-cpu",
        ]
        self._out = out

    def until(self, more: int, then_seconds: float) -> None:
        """Start, wait until the journal has ``more`` new lines, and kill."""
        start = self._lines()
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while process.poll() is None and self._lines() < start + more:
                time.sleep(0.001)
            time.sleep(then_seconds)
            process.kill()

    def finish(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command, capture_output=True, text=True, check=False)

    def _lines(self) -> int:
        journal = self._out / JOURNAL_NAME
        return journal.read_bytes().count(b"\n") if journal.exists() else 1


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_any_moment_leave_whole_files_and_nothing_is_done_twice(
    kills: int, tmp_path: Path, bundle_folder: Path, noise: Noise
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    broken = {"07.png", "18.png", "25.png"}
    for number in range(3 * kills):
        path = source / ("even" if number % 2 == 0 else "odd") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(300, 400 + number, 3)).save(path, compress_level=0)
        if path.name in broken:
            path.write_bytes(path.read_bytes()[:5000])
    before = {path: path.read_bytes() for path in source.rglob("*.png")}
    dice = random.Random(kills)
    killed = Killed(source, out, bundle_folder)
    finished: dict[str, tuple[int, int]] = {}
    for _ in range(kills):
        killed.until(dice.randint(1, 3), dice.random() * 0.05)
        for name in done_lines(out):
            status = (out / name).stat()
            finished.setdefault(name, (status.st_ino, status.st_mtime_ns))
        assert_whole(source, out)
    last = killed.finish()
    assert last.returncode == 1
    bad = {path.relative_to(source).as_posix() for path in source.rglob("*.png") if path.name in broken}
    good = {path.relative_to(source).as_posix() for path in source.rglob("*.png")} - bad
    assert last.stdout.startswith(f"{len(good)} of {len(good | bad)} pictures")
    assert all(name in last.stderr for name in bad)
    assert files_in(out) == good | {JOURNAL_NAME}
    assert Counter(done_lines(out)) == Counter(good)
    assert_whole(source, out)
    for name, identity in finished.items():
        status = (out / name).stat()
        assert (status.st_ino, status.st_mtime_ns) == identity, f"{name} was done twice"
    assert {path: path.read_bytes() for path in source.rglob("*.png")} == before


def assert_whole(source: Path, out: Path) -> None:
    """Every file that has a result's name is the whole and right result."""
    for path in out.rglob("*.png"):
        expected = 255 - read_picture(source / path.relative_to(out)).pixels
        assert np.array_equal(read_picture(path).pixels, expected)


# Videos


def write_clip(path: Path, frames: int) -> None:
    """Grey frames, each brighter than the one before, ten a second."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 50 + 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def brightness(path: Path) -> list[float]:
    with av.open(path) as container:
        return [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]


def test_a_video_and_part_of_it(deblur: Command, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 8)
    finished = deblur(tmp_path / "clip.mp4", "-o", tmp_path / "out.mp4", "--crf", "1")
    assert finished.code == 0
    assert finished.out == f"1 of 1 files deblurred to {tmp_path / 'out.mp4'}\n"
    expected = np.array([255 - 50 - 10 * number for number in range(8)])
    assert np.abs(np.array(brightness(tmp_path / "out.mp4")) - expected).max() < 3
    assert deblur(tmp_path / "clip.mp4", "-o", tmp_path / "part.mkv", "--start", "0.2", "--end", "00:00:00.5").code == 0
    assert np.abs(np.array(brightness(tmp_path / "part.mkv")) - expected[2:5]).max() < 5


def test_videos_in_folders_are_done_once(deblur: Command, album: Path, tmp_path: Path) -> None:
    write_clip(album / "day" / "clip.mp4", 3)
    (album / "broken.mov").write_text("no video")
    finished = deblur(album, "-o", tmp_path / "out", "--format", "png")
    assert finished.code == 1
    assert finished.out == f"4 of 5 files deblurred to {tmp_path / 'out'}\n"
    assert "broken.mov" in finished.err
    assert len(brightness(tmp_path / "out" / "day" / "clip.mp4")) == 3
    again = deblur(album, "-o", tmp_path / "out", "--format", "png")
    assert again.out == f"4 of 5 files deblurred to {tmp_path / 'out'} (4 of them before)\n"
