"""Many files: results, bad files, what is done at the same time, and what a journal saves."""

from __future__ import annotations

import errno
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from msan_runtime.backends.base import TileLimits
from msan_runtime.batch import FileOptions, deblur_files, default_workers
from msan_runtime.compare import side_by_side
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MissingExtraError, PictureError
from msan_runtime.image import EncodeOptions, Picture, read_picture
from msan_runtime.jobs import Job, plan_jobs
from msan_runtime.journal import Journal, Run
from msan_runtime.pipeline import StageTimes
from msan_runtime.video import VideoOptions, VideoProgress, VideoSummary

Noise = Callable[..., PictureArray]


@pytest.fixture
def inverting(make_deblurrer: Callable[..., Deblurrer]) -> Deblurrer:
    return make_deblurrer(lambda tiles: 255 - tiles, TileLimits(area_px=4096))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures, one of them deeper, and a file that is none."""
    folder = tmp_path / "pictures"
    for name in ("a.png", "b.JPG", "trip/day 1/c.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 5), (10, 20, 30)).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


def test_results_are_what_the_network_gives(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    jobs = plan_jobs([pictures], tmp_path / "out")
    outcomes = list(deblur_files(inverting, jobs))
    assert [outcome.job for outcome in outcomes] == list(jobs)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    for job in jobs:
        assert np.abs(read_picture(job.target).pixels.astype(int) - (245, 235, 225)).max() <= 2


def test_one_bad_file_does_not_stop_the_others(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    (pictures / "aa.jpg").write_text("no picture")
    (pictures / "z.png").write_bytes((pictures / "a.png").read_bytes()[:-30])
    outcomes = list(deblur_files(inverting, plan_jobs([pictures], tmp_path / "out")))
    errors = {outcome.job.source.name: outcome.error for outcome in outcomes if outcome.error is not None}
    assert set(errors) == {"aa.jpg", "z.png"}
    assert "aa.jpg is not a JPEG" in errors["aa.jpg"]
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"a.png", "b.JPG", "c.webp"}


def test_a_result_that_cannot_be_written_is_an_outcome(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    Image.new("RGBA", (9, 5)).save(pictures / "a.png")
    jobs = [Job(source=pictures / "a.png", target=tmp_path / "a.jpg"), Job(source=pictures / "b.JPG", target=tmp_path)]
    errors = [outcome.error or "" for outcome in deblur_files(inverting, jobs)]
    assert "JPEG has no transparency" in errors[0]
    assert "cannot write" in errors[1]


def test_results_are_there_when_their_outcome_is(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    for outcome in deblur_files(inverting, plan_jobs([pictures], tmp_path / "out")):
        assert outcome.job.target.exists()
        assert outcome.seconds > 0
        assert not outcome.kept


def test_closing_ends_the_run_with_whole_files(tmp_path: Path, noise: Noise, inverting: Deblurrer) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(40):
        Image.fromarray(noise(9, 5, 3)).save(source / f"{number:02}.png")
    outcomes = deblur_files(inverting, plan_jobs([source], tmp_path / "out"))
    next(outcomes)
    outcomes.close()
    written = sorted((tmp_path / "out").iterdir())
    assert 1 <= len(written) < 40
    assert [path.name for path in written] == [f"{number:02}.png" for number in range(len(written))]
    for path in written:
        assert np.array_equal(read_picture(path).pixels, 255 - noise(9, 5, 3))


@pytest.mark.parametrize("workers", [1, 4])
def test_pictures_are_read_and_written_while_others_are_deblurred(
    workers: int, tmp_path: Path, make_deblurrer: Callable[..., Deblurrer]
) -> None:
    """The network waits until the picture after the next has been read: only possible if reading runs ahead."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(8):
        Image.new("RGB", (9, 5), (number, 0, 0)).save(source / f"{number}.png")
    opened: list[str] = []
    ahead = threading.Condition()

    class Watched(Job):
        __slots__ = ()

        @property
        def is_video(self) -> bool:
            with ahead:
                opened.append(self.source.name)
                ahead.notify_all()
            return False

    def network(tiles: PictureArray) -> PictureArray:
        number = int(tiles[0, 0, 0, 0])
        with ahead:
            assert ahead.wait_for(lambda: number > 5 or f"{number + 2}.png" in opened, timeout=20)
        return tiles

    jobs = [Watched(source=source / f"{n}.png", target=tmp_path / f"{n}.png") for n in range(8)]
    times = StageTimes()
    deblurrer = make_deblurrer(network, TileLimits(area_px=4096))
    outcomes = list(deblur_files(deblurrer, jobs, workers=workers, times=times))
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert 0 < times.busy_share < 1
    assert min(times.seconds.values()) > 0


def test_workers_leave_cores_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_cores(cores: int) -> int:
        monkeypatch.setattr("msan_runtime.batch.usable_cores", lambda: cores)
        return default_workers()

    assert [with_cores(cores) for cores in (1, 2, 4, 8, 16, 64)] == [1, 1, 1, 2, 4, 4]


def test_a_picture_that_does_not_fit_into_memory_does_not_stop_the_others(
    pictures: Path, tmp_path: Path, make_deblurrer: Callable[..., Deblurrer]
) -> None:
    def network(tiles: PictureArray) -> PictureArray:
        if tiles.shape[1] > 8:
            raise MemoryError
        return tiles

    Image.new("RGB", (9, 30)).save(pictures / "b.JPG")
    deblurrer = make_deblurrer(network, TileLimits(area_px=4096))
    outcomes = list(deblur_files(deblurrer, plan_jobs([pictures], tmp_path / "out")))
    errors = {outcome.job.source.name: outcome.error for outcome in outcomes}
    assert errors == {
        "a.png": None,
        "b.JPG": f"{pictures / 'b.JPG'} does not fit into this machine's memory",
        "c.webp": None,
    }


def test_a_full_disk_ends_the_run(
    pictures: Path, tmp_path: Path, inverting: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("msan_runtime.atomic.os.fsync", full)
    outcomes = deblur_files(inverting, plan_jobs([pictures], tmp_path / "out"))
    with pytest.raises(PictureError, match=r"No space left on device\. Make room and give the command again"):
        list(outcomes)
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_results_are_kept_if_asked_for(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("mine")
    jobs = plan_jobs([pictures], tmp_path / "out")
    outcomes = list(deblur_files(inverting, jobs, options=FileOptions(skip_existing=True)))
    assert [outcome.kept for outcome in outcomes] == [True, False, False]
    assert (tmp_path / "out" / "a.png").read_text() == "mine"
    assert [outcome.kept for outcome in deblur_files(inverting, jobs)] == [False] * 3
    assert (tmp_path / "out" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_without_its_comparison_does_not_count_as_existing(
    pictures: Path, tmp_path: Path, inverting: Deblurrer
) -> None:
    jobs = plan_jobs([pictures], tmp_path / "out", compare=True)
    list(deblur_files(inverting, jobs))
    (tmp_path / "out" / "a.compare.png").unlink()
    outcomes = list(deblur_files(inverting, jobs, options=FileOptions(skip_existing=True)))
    assert [outcome.kept for outcome in outcomes] == [False, True, True]


def test_pictures_over_the_limit_are_refused_and_quality_is_passed_on(
    pictures: Path, tmp_path: Path, inverting: Deblurrer, noise: Noise
) -> None:
    Image.fromarray(noise(64, 64, 3)).save(pictures / "b.JPG", quality=90)
    jobs = plan_jobs([pictures], tmp_path / "out")
    sizes: list[int] = []
    for quality in (20, 95):
        encode = EncodeOptions(jpeg_quality=quality)
        assert all(o.error is None for o in deblur_files(inverting, jobs, options=FileOptions(encode=encode)))
        sizes.append((tmp_path / "out" / "b.JPG").stat().st_size)
    assert sizes[0] * 2 < sizes[1]
    outcomes = list(deblur_files(inverting, jobs, options=FileOptions(max_pixels=64 * 64 - 1)))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]


def test_a_journal_saves_work_and_notes_what_failed(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    (pictures / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    out.mkdir()
    run = Run(model="tiny", model_sha256="0" * 64)

    def kept() -> list[bool | None]:
        with Journal.open(out, run) as journal:
            outcomes = deblur_files(inverting, plan_jobs([pictures], out), journal=journal)
            return [None if outcome.error else outcome.kept for outcome in outcomes]

    assert kept() == [False, False, None, False]
    (out / "b.JPG").write_bytes(b"changed by somebody")
    Image.new("RGB", (8, 8)).save(pictures / "bad.png")
    assert kept() == [True, False, False, True]
    assert kept() == [True] * 4


class Clips:
    """Stands for the video code: writes the source's name, tells of two frames."""

    def __init__(self, error: Exception | None = None) -> None:
        self.options: list[VideoOptions] = []
        self._error = error

    def deblur_video(
        self,
        _: Deblurrer,
        source: Path,
        target: Path,
        options: VideoOptions,
        *,
        on_progress: Callable[[VideoProgress], None] | None,
    ) -> VideoSummary:
        self.options.append(options)
        if self._error is not None:
            raise self._error
        for done in (1, 2):
            if on_progress is not None:
                on_progress(VideoProgress(frames_done=done, frames_total=2, fps=1.0, eta_seconds=None))
        target.write_text(source.name)
        return VideoSummary(
            frames=2, damaged=0, video_seconds=1, wall_seconds=1, codec="x", pixel_format="y", left_out=()
        )


def test_videos_are_jobs_like_pictures(
    pictures: Path, tmp_path: Path, inverting: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = Clips()
    monkeypatch.setattr("msan_runtime.batch.deblur_video", clips.deblur_video)
    (pictures / "trip" / "ab.mp4").write_text("frames")
    options = FileOptions(video=VideoOptions(crf=11))
    told: list[tuple[str, int]] = []
    outcomes = deblur_files(
        inverting,
        plan_jobs([pictures], tmp_path / "out", compare=True),
        options=options,
        on_video=lambda job, progress: told.append((job.source.name, progress.frames_done)),
    )
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert (tmp_path / "out" / "trip" / "ab.mp4").read_text() == "ab.mp4"
    assert clips.options == [options.video]
    assert told == [("ab.mp4", 1), ("ab.mp4", 2)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MissingExtraError("av", "video"), "pip install 'msan[video]'"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_a_video_that_cannot_be_done_does_not_stop_the_pictures(
    error: Exception, words: str, pictures: Path, tmp_path: Path, inverting: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msan_runtime.batch.deblur_video", Clips(error).deblur_video)
    (pictures / "ab.mp4").write_text("frames")
    outcomes = list(deblur_files(inverting, plan_jobs([pictures], tmp_path / "out")))
    errors = [outcome.error for outcome in outcomes]
    assert [reason is None for reason in errors] == [True, False, True, True]
    assert words in (errors[1] or "")


def test_alpha_and_greyness_go_through(tmp_path: Path, noise: Noise, inverting: Deblurrer) -> None:
    pixels = noise(6, 7, 2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "LA"
    list(deblur_files(inverting, [Job(source=tmp_path / "a.png", target=tmp_path / "b.png")]))
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "LA"
        assert np.array_equal(np.array(image), np.stack([255 - pixels[:, :, 0], pixels[:, :, 1]], axis=2))


def test_a_comparison_is_written_beside_the_result(tmp_path: Path, noise: Noise, inverting: Deblurrer) -> None:
    pixels = noise(40, 60, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    jobs = plan_jobs([tmp_path / "a.png"], tmp_path / "out", compare=True)
    list(deblur_files(inverting, jobs))
    with Image.open(tmp_path / "out" / "a.compare.png") as sheet:
        assert sheet.info["icc_profile"] == profile
        assert np.array_equal(np.array(sheet)[-40:], side_by_side(pixels, 255 - pixels)[-40:])


def test_the_comparison_of_a_grey_picture_has_no_grey_profile(tmp_path: Path, inverting: Deblurrer) -> None:
    Image.new("L", (20, 20), 7).save(tmp_path / "a.png", icc_profile=b"a grey profile")
    jobs = plan_jobs([tmp_path / "a.png"], tmp_path / "out", compare=True)
    assert [outcome.error for outcome in deblur_files(inverting, jobs)] == [None]
    with Image.open(tmp_path / "out" / "a.png") as result, Image.open(tmp_path / "out" / "a.compare.png") as sheet:
        assert result.info["icc_profile"] == b"a grey profile"
        assert "icc_profile" not in sheet.info


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (100, 300), (1, 4000)])
def test_a_comparison_shows_both_pictures_untouched_under_labels(height: int, width: int, noise: Noise) -> None:
    before, after = noise(height, width, 3), 255 - noise(height, width, 3)
    sheet = side_by_side(before, after)
    assert np.array_equal(sheet[-height:, :width], before)
    assert np.array_equal(sheet[-height:, -width:], after)
    labels = sheet[:-height]
    assert labels.min() < 100
    assert labels.max() == 255


def test_blurred_pixels_are_let_go_while_the_result_is_written(
    pictures: Path, tmp_path: Path, inverting: Deblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    blurred: list[weakref.ref[PictureArray]] = []

    def reading(path: Path, **options: Any) -> Picture:
        picture = read_picture(path, **options)
        blurred.append(weakref.ref(picture.pixels))
        return picture

    def writing(*_: object) -> None:
        # The thread that deblurs lets go of them at its own pace.
        assert any(blurred[0]() is None or time.sleep(0.01) for _ in range(500))

    monkeypatch.setattr("msan_runtime.batch.read_picture", reading)
    monkeypatch.setattr("msan_runtime.batch.write_picture", writing)
    (outcome,) = deblur_files(inverting, [Job(source=pictures / "a.png", target=tmp_path / "out.png")])
    assert outcome.error is None
    assert len(blurred) == 1
