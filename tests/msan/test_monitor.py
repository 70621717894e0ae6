"""What a training tells: log lines, progress, and TensorBoard's event files as TensorBoard reads them."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msan.training.event_file import EventFile
from msan.training.monitor import Monitor, Progress
from msan.training.run_folder import RunFolder, RunFolderError, read_log
from msan.training.trainer import StepResult
from msan.training.validation import ValidationResult
from msan_runtime.errors import MissingExtraError

EXAMPLE = torch.randint(256, (3, 8, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stops the clock; moves it on by so many seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def tick(seconds: float) -> None:
        now[0] += seconds

    return tick


def told(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in told(folder).Scalars(tag)]


def step(loss: float) -> StepResult:
    return StepResult(loss=loss, gradient_norm=2.5)


def validation(deblurred_db: float) -> ValidationResult:
    return ValidationResult(blurred_db=20.0, deblurred_db=deblurred_db, example=EXAMPLE)


def monitor(folder: RunFolder, reports: list[Progress] | None = None, *, tensorboard: bool = False) -> Monitor:
    heard = None if reports is None else reports.append
    return Monitor(folder, batch=6, tensorboard=tensorboard, on_progress=heard)


def test_a_report_has_the_mean_loss_the_rate_and_the_speed_since_the_last_one(
    folder: RunFolder, clock: Callable[[float], None]
) -> None:
    reports: list[Progress] = []
    ours = monitor(folder, reports)
    clock(50)
    ours.start(0)
    for loss in (0.5, 0.2):
        clock(2)
        ours.add(step(loss), waited_s=0.5)
    ours.report(step(0.2), step=2, steps=9, learning_rate=1e-3)
    clock(4)
    ours.add(step(0.1), waited_s=1)
    ours.report(step(0.1), step=3, steps=9, learning_rate=2e-3)
    first, second = reports
    assert first.loss == pytest.approx(0.35)
    assert (first.step, first.steps, first.learning_rate, first.gradient_norm) == (2, 9, 1e-3, 2.5)
    # Two steps of six samples in four seconds, of which one was spent waiting.
    assert (first.images_per_s, first.waiting) == (3.0, 0.25)
    assert (second.loss, second.images_per_s, second.waiting) == (0.1, 1.5, 0.25)
    assert read_log(folder.log) == [
        {"step": 2, "loss": first.loss, "lr": 1e-3, "images_per_s": 3.0, "waiting": 0.25, "s": 4.0},
        {"step": 3, "loss": 0.1, "lr": 2e-3, "images_per_s": 1.5, "waiting": 0.25, "s": 8.0},
    ]


def test_a_resumed_run_goes_on_with_the_mean_and_the_time(folder: RunFolder, clock: Callable[[float], None]) -> None:
    ours = monitor(folder)
    ours.start(0)
    clock(5)
    ours.add(step(0.5), waited_s=0)
    state = ours.state()
    clock(1000)
    resumed = monitor(folder)
    resumed.load_state(state)
    resumed.start(1)
    clock(3)
    resumed.add(step(0.1), waited_s=0)
    resumed.report(step(0.1), step=2, steps=2, learning_rate=1e-3)
    (line,) = read_log(folder.log)
    assert line["loss"] == pytest.approx(0.3)
    assert line["s"] == 8.0
    assert line["images_per_s"] == 2.0


def test_tensorboard_reads_the_scalars_and_the_picture(folder: RunFolder) -> None:
    ours = monitor(folder, tensorboard=True)
    ours.start(0)
    ours.add(step(0.25), waited_s=0)
    ours.report(step(0.25), step=5, steps=9, learning_rate=1e-3)
    ours.validated(validation(21.5), 5)
    assert scalars(folder.tensorboard, "training/loss") == [(5, 0.25)]
    assert scalars(folder.tensorboard, "training/learning_rate") == [(5, pytest.approx(1e-3))]
    assert scalars(folder.tensorboard, "training/gradient_norm") == [(5, 2.5)]
    assert scalars(folder.tensorboard, "validation/psnr_db") == [(5, 21.5)]
    assert scalars(folder.tensorboard, "validation/gain_db") == [(5, 1.5)]
    (picture,) = told(folder.tensorboard).Images("validation/blurred_deblurred_sharp")
    assert (picture.step, picture.height, picture.width) == (5, 8, 24)
    with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
        assert np.array_equal(np.asarray(image), EXAMPLE.permute(1, 2, 0).numpy())
    assert read_log(folder.log)[1] == {"step": 5, "validation": {"blurred_db": 20.0, "deblurred_db": 21.5}}


@pytest.mark.parametrize("saved", [0, 1, 3])
def test_what_a_resumed_run_tells_again_counts_once(saved: int, folder: RunFolder) -> None:
    for first, last in ((0, 5), (saved, 7)):
        ours = monitor(folder, tensorboard=True)
        ours.start(first)
        for done in range(first + 1, last + 1):
            ours.add(step(done / 8), waited_s=0)
            ours.report(step(done / 8), step=done, steps=7, learning_rate=1e-3)
        ours.validated(validation(last), last)
    assert scalars(folder.tensorboard, "training/loss") == [(done, done / 8) for done in range(1, 8)]
    assert scalars(folder.tensorboard, "validation/psnr_db") == [(7, 7)]
    assert [line["step"] for line in read_log(folder.log)] == [1, 2, 3, 4, 5, 6, 7, 7]


def test_an_event_that_was_cut_short_does_not_hide_what_a_resumed_run_tells(tmp_path: Path) -> None:
    first = EventFile(tmp_path, first_step=1)
    for done in (1, 2):
        first.add_scalars({"loss": done}, done)
    first.path.write_bytes(first.path.read_bytes()[:-5])
    EventFile(tmp_path, first_step=2).add_scalars({"loss": 2}, 2)
    assert scalars(tmp_path, "loss") == [(1, 1), (2, 2)]


def test_a_folder_that_cannot_take_events_is_named(folder: RunFolder) -> None:
    folder.tensorboard.touch()
    with pytest.raises(RunFolderError, match=r"cannot write .*tensorboard: .* What was saved before is still there"):
        monitor(folder, tensorboard=True).start(0)


@pytest.mark.parametrize("told", ["report", "validated"])
def test_an_event_for_which_the_disk_has_no_room_is_an_error(
    told: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = monitor(folder, tensorboard=True)
    ours.start(0)
    ours.add(step(0.5), waited_s=0)
    real = Path.open

    def full(path: Path, mode: str = "r") -> object:
        if path.parent == folder.tensorboard:
            raise OSError(28, "No space left on device")
        return real(path, mode)

    monkeypatch.setattr(Path, "open", full)
    tell = {
        "report": lambda: ours.report(step(0.5), step=1, steps=2, learning_rate=1e-3),
        "validated": lambda: ours.validated(validation(20.0), 1),
    }[told]
    with pytest.raises(RunFolderError, match=r"cannot write .*tensorboard: No space left on device"):
        tell()


def test_without_tensorboard_the_extra_is_named_and_can_be_done_without(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'msan\[train\]'"):
        monitor(folder, tensorboard=True).start(0)
    without = monitor(folder)
    without.start(0)
    without.validated(validation(20.0), 1)
    assert len(read_log(folder.log)) == 1
