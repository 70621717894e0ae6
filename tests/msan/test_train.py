"""Training: resumes to the bit however it was stopped, learns, keeps the best, and names what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from msan.checkpoint import CheckpointError, load_checkpoint, network_from_checkpoint
from msan.data.datasets import tensors_from_batch
from msan.data.loader import DataOptions, batches, open_data
from msan.data.readers import DatasetError
from msan.degradation.blur import BlurSpec
from msan.spec import ModelSpec
from msan.training.distributed import Team
from msan.training.losses import bce_loss
from msan.training.recipe import TrainConfig
from msan.training.run_folder import RunFolder, RunFolderError, read_log
from msan.training.train import Progress, TrainError, TrainOptions, TrainResult, TrainStoppedError
from msan.training.train import train as train_with_team
from msan.training.validation import open_validation
from msan_runtime.errors import MsanError

CPU = torch.device("cpu")
ALONE = Team(rank=0, processes=1, device=CPU)
MakePictures = Callable[..., Path]


class Launched(Protocol):
    """A process of the ``msan`` command."""

    @property
    def output(self) -> str: ...
    @property
    def errors(self) -> str: ...
    def send(self, number: int) -> None: ...
    def wait(self) -> int: ...


class Launcher(Protocol):
    """Starts the ``msan`` command."""

    def start(self, *arguments: str | Path, largest_file: int | None = None) -> Launched: ...


class StoppedError(Exception):
    """What stops a run in these tests."""


def say_nothing(text: str) -> None:
    del text


def train(roots: list[Path], folder: Path, config: TrainConfig, **options: Any) -> TrainResult:
    data = DataOptions(announce=options.pop("announce", say_nothing), workers=options.pop("workers", None))
    return train_with_team(roots, folder, config, ALONE, TrainOptions(data=data, **options))


def stop_at(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise StoppedError

    return stop


def equal(one: object, other: object) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other


def state_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    del state["monitor"]["seconds"]
    return state


def log_of(folder: Path) -> list[dict[str, Any]]:
    """What the log says that is not a matter of time."""
    timed = ("images_per_s", "waiting", "s")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_log(folder / "log.jsonl")]


def assert_same_run(ours: Path, theirs: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        assert (ours / name).exists() == (theirs / name).exists()
        assert not (ours / name).exists() or (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert equal(state_of(ours), state_of(theirs))
    assert log_of(ours) == log_of(theirs)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


@pytest.fixture(scope="module")
def both(miniature: TrainConfig) -> TrainConfig:
    """A recipe for pairs and sharp pictures, with validation and a moving average."""
    return dataclasses.replace(miniature, held_back=2, ema_decay=0.8, clip_norm=0.5)


@pytest.fixture(scope="module")
def roots(sharp_folder: Path, pair_folder: Path) -> list[Path]:
    return [sharp_folder, pair_folder]


@pytest.fixture(scope="module")
def whole(both: TrainConfig, roots: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of ``both``, with a report each step."""
    folder = tmp_path_factory.mktemp("whole")
    train(roots, folder, both, report_every=1)
    return folder


class TestResuming:
    @pytest.mark.parametrize("stopped", [1, 4, 7])
    def test_a_run_stopped_by_an_exception_is_an_uninterrupted_one_to_the_bit(
        self, stopped: int, both: TrainConfig, roots: list[Path], whole: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(StoppedError):
            train(roots, tmp_path, both, on_progress=stop_at(stopped), report_every=1, save_every=2)
        # Resuming must not lean on the random state of the process.
        torch.manual_seed(99)
        train(roots, tmp_path, both, report_every=1, save_every=4)
        assert_same_run(tmp_path, whole)

    @pytest.mark.parametrize(
        "changes",
        [{"amp": "bf16"}, {"amp": "fp16", "ema_decay": 0.0}, {"flat_share": 0.3, "candidates": 2, "loss": "mse"}],
    )
    def test_so_it_is_with_any_recipe(
        self, changes: dict[str, Any], both: TrainConfig, roots: list[Path], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(both, **changes, steps=5)
        train(roots, tmp_path / "whole", config, report_every=3)
        with pytest.raises(StoppedError):
            train(roots, tmp_path / "parts", config, on_progress=stop_at(3), report_every=3, save_every=2)
        train(roots, tmp_path / "parts", config, report_every=3)
        assert_same_run(tmp_path / "parts", tmp_path / "whole")

    def test_so_it_is_whichever_file_was_not_written_any_more(
        self, both: TrainConfig, roots: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = dataclasses.replace(both, steps=3, validate_every=2)
        train(roots, tmp_path / "whole", config, report_every=1, save_every=1)
        replace = Path.replace
        last = 0
        for last in itertools.count(1):
            written = itertools.count(1)

            def dying(path: Path, target: Path, last: int = last, written: Iterator[int] = written) -> Path:
                if next(written) == last:
                    raise KeyboardInterrupt
                return replace(path, target)

            folder = tmp_path / f"parts{last}"
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", dying)
                try:
                    train(roots, folder, config, report_every=1, save_every=1)
                except KeyboardInterrupt:
                    pass
                else:
                    break
            train(roots, folder, config, report_every=1, save_every=1)
            assert_same_run(folder, tmp_path / "whole")
        # The recipe, three states, three last weights and at least one best.
        assert last > 8

    def test_a_resumed_run_starts_at_the_saved_step(
        self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
    ) -> None:
        steps: list[int] = []
        with pytest.raises(StoppedError):
            train([sharp_folder], tmp_path, miniature, on_progress=stop_at(5), report_every=1, save_every=2)
        train([sharp_folder], tmp_path, miniature, on_progress=lambda p: steps.append(p.step), report_every=1)
        assert steps == [5, 6, 7, 8, 9]

    def test_a_run_that_is_asked_to_stop_saves_and_goes_on(
        self, both: TrainConfig, roots: list[Path], whole: Path, tmp_path: Path
    ) -> None:
        answers = iter([False, False, True])
        with pytest.raises(TrainStoppedError, match=r"stopped at step 3 of 9, saved to .*: the same command") as raised:
            train(roots, tmp_path, both, report_every=1, should_stop=lambda: next(answers))
        assert raised.value.exit_code == 130
        assert state_of(tmp_path)["step"] == 3
        train(roots, tmp_path, both, report_every=1)
        assert_same_run(tmp_path, whole)

    def test_a_finished_run_is_left_as_it_is(
        self, both: TrainConfig, roots: list[Path], whole: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        reports: list[Progress] = []
        result = train(roots, tmp_path, both, on_progress=reports.append)
        assert result == TrainResult(last=tmp_path / "last.safetensors", best=tmp_path / "best.safetensors", bad={})
        assert reports == []
        assert_same_run(tmp_path, whole)

    def test_a_run_may_be_lengthened(self, both: TrainConfig, roots: list[Path], whole: Path, tmp_path: Path) -> None:
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        reports: list[Progress] = []
        train(roots, tmp_path, dataclasses.replace(both, steps=11), on_progress=reports.append)
        assert [(p.step, p.steps) for p in reports] == [(11, 11)]
        assert load_checkpoint(tmp_path / "last.safetensors").metadata["msan.steps"] == "11"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(
        "network = {stages = 1, base_channels = 4, resblocks = 1}\n"
        "steps = 24\nbatch = 2\ncrop_px = 32\nvalidation_px = 32\nlearning_rate = 1e-3\nwarmup_steps = 3\n"
        "ema_decay = 0.8\nheld_back = 2\nvalidate_every = 4\n"
        "blur = {length_px = [1.0, 4.0], roll_px = 0.0, zoom_px = 0.0, instants = 5}\n"
    )
    return file


@pytest.fixture(scope="module")
def arguments(recipe_file: Path, roots: list[Path]) -> list[str | Path]:
    options = ["--device", "cpu", "--report-every", "1", "--save-every", "3"]
    return ["train", *roots, "--recipe", recipe_file, *options]


@pytest.fixture(scope="module")
def uninterrupted(launcher: Launcher, arguments: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = launcher.start(*arguments, "-o", folder)
    assert process.wait() == 0, process.errors
    assert process.output.splitlines()[-1] == f"{folder}/last.safetensors: msan-1x4c1r, last step"
    return folder


class TestKilledProcesses:
    """``msan train`` in processes of its own, ended by signals."""

    @staticmethod
    def wait_for_step(folder: Path, step: int) -> None:
        deadline = time.monotonic() + 200
        log = folder / "log.jsonl"
        # Read once a turn: a run that goes on takes off lines.
        while not log.exists() or not (lines := log_of(folder)) or lines[-1]["step"] < step:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def interrupted(self, launcher: Launcher, arguments: list[str | Path], tmp_path: Path) -> tuple[Path, Launched]:
        """A run's folder and its process, which a terminal's Ctrl-C has stopped after five steps or more."""
        for attempt in itertools.count():
            run = tmp_path / f"run{attempt}"
            process = launcher.start(*arguments, "-o", run, "--workers", "1")
            self.wait_for_step(run, 5)
            process.send(signal.SIGINT)
            exit_code = process.wait()
            # A busy machine may let it finish before the signal comes.
            if exit_code != 0:
                assert exit_code == 130, process.errors
                return run, process
        raise AssertionError

    def test_a_run_killed_at_any_moment_is_an_uninterrupted_one_to_the_bit(
        self, launcher: Launcher, arguments: list[str | Path], uninterrupted: Path, tmp_path: Path
    ) -> None:
        moments = random.Random(7)
        run = tmp_path / "run"
        killed = 0
        for step in (1, 8, 14, 19):
            process = launcher.start(*arguments, "-o", run)
            self.wait_for_step(run, step)
            time.sleep(moments.uniform(0, 0.05))
            process.send(signal.SIGKILL)
            # A busy machine may let it finish before the signal comes.
            killed += process.wait() == -signal.SIGKILL
            if (run / "state.pt").exists():
                assert state_of(run)["step"] % 3 == 0
                load_checkpoint(run / "last.safetensors")
        assert killed
        (run / ".state.pt.left0ver.tmp").write_bytes(b"half")
        process = launcher.start(*arguments, "-o", run)
        assert process.wait() == 0, process.errors
        assert_same_run(run, uninterrupted)
        events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
        losses = [line for line in log_of(uninterrupted) if "loss" in line]
        told = [(event.step, event.value) for event in events.Scalars("training/loss")]
        assert told == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in losses]
        assert [event.step for event in events.Scalars("validation/psnr_db")] == list(range(4, 25, 4))
        assert [event.step for event in events.Images("validation/blurred_deblurred_sharp")] == list(range(4, 25, 4))

    def test_ctrl_c_saves_and_a_full_disk_keeps_what_was_saved(
        self, launcher: Launcher, arguments: list[str | Path], uninterrupted: Path, tmp_path: Path
    ) -> None:
        run, process = self.interrupted(launcher, arguments, tmp_path)
        step = state_of(run)["step"]
        assert_one_error(process.errors, f"stopped at step {step} of 24, saved to {run}: the same command goes on$")
        assert log_of(run)[-1]["step"] == step
        before = {name: (run / name).read_bytes() for name in ("state.pt", "last.safetensors", "best.safetensors")}
        process = launcher.start(*arguments, "-o", run, largest_file=15_000)
        assert process.wait() == 2
        words = r"cannot write .*\.(safetensors|pt): File too large. What was saved before is still there: make room"
        assert_one_error(process.errors, words)
        assert {name: (run / name).read_bytes() for name in before} == before
        assert not [path for path in run.iterdir() if path.suffix == ".tmp"]
        process = launcher.start(*arguments, "-o", run)
        assert process.wait() == 0, process.errors
        assert_same_run(run, uninterrupted)


def assert_one_error(printed: str, words: str) -> None:
    """What was printed ends in one line ``error: words``, and holds no traceback."""
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert re.search(words, lines[0]), lines[0]
    assert printed.rstrip().endswith(lines[0])


class TestLearning:
    @pytest.mark.parametrize("loss", ["bce", "mse"])
    @pytest.mark.parametrize("kind", ["sharp", "pairs", "both"])
    def test_the_first_loss_of_an_identity_is_that_of_the_blurred_pictures(
        self, loss: Any, kind: str, miniature: TrainConfig, roots: list[Path], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(miniature, loss=loss, steps=1, batch=5, identity_start=True)
        used = {"sharp": roots[:1], "pairs": roots[1:], "both": roots}[kind]
        reports: list[Progress] = []
        train(used, tmp_path, config, on_progress=reports.append)
        samples = open_data(used, config, DataOptions(announce=say_nothing)).samples
        batch = next(batches(samples, range(1), rank=0, processes=1, device=CPU, workers=0))
        blurred, sharp = (part.double() for part in tensors_from_batch(batch, config, CPU))
        error = blurred - sharp
        expected = error.square().mean() if loss == "mse" else -torch.log(1 - error.abs()).mean()
        assert reports[0].loss == pytest.approx(float(expected), rel=1e-4)

    def test_a_network_learns_to_deblur(self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path) -> None:
        blur = BlurSpec(
            length_px=(3.0, 4.0),
            roll_px=0.0,
            zoom_px=0.0,
            wander=0.0,
            noise_levels=0.0,
            sharp_share=0.0,
            moving_share=0.0,
            jpeg_share=0.0,
            instants=5,
        )
        config = dataclasses.replace(
            miniature, steps=60, learning_rate=5e-3, warmup_steps=5, batch=4, identity_start=True, blur=blur
        )
        result = train([sharp_folder], tmp_path, config)
        samples = open_data([sharp_folder], config, DataOptions(announce=say_nothing)).samples
        batch = next(batches(samples, range(500, 501), rank=0, processes=1, device=CPU, workers=0))
        blurred, sharp = tensors_from_batch(batch, config, CPU)
        with torch.inference_mode():
            deblurred = network_from_checkpoint(load_checkpoint(result.last))(blurred)
        assert float(bce_loss(deblurred, sharp)) < 0.95 * float(bce_loss(blurred, sharp))

    def test_no_attention_has_no_attention(self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path) -> None:
        spec = dataclasses.replace(miniature.spec, attention=False)
        result = train([sharp_folder], tmp_path, dataclasses.replace(miniature, spec=spec, steps=1))
        assert load_checkpoint(result.last).spec == spec


class TestRunFolder:
    def test_a_run_leaves_its_recipe_its_log_and_checkpoints_that_load(
        self, both: TrainConfig, roots: list[Path], tmp_path: Path
    ) -> None:
        reports: list[Progress] = []
        result = train(roots, tmp_path, both, report_every=4, on_progress=reports.append)
        names = [".lock", "best.safetensors", "last.safetensors", "log.jsonl", "state.pt", "train.json"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        recipe = json.loads((tmp_path / "train.json").read_text())["config"]
        assert recipe == json.loads(json.dumps(both.to_dict()))
        lines = read_log(tmp_path / "log.jsonl")
        assert [line["step"] for line in lines if "loss" in line] == [p.step for p in reports] == [4, 8, 9]
        assert [line["step"] for line in lines if "validation" in line] == [3, 6, 9]
        assert all(p.images_per_s > 0 and 0 <= p.waiting <= 1 and p.gradient_norm > 0 for p in reports)
        assert [p.learning_rate for p in reports][-1] == both.learning_rate_end
        assert result.best is not None
        for path in (result.last, result.best):
            checkpoint = load_checkpoint(path)
            assert checkpoint.spec == both.spec
            assert json.loads(checkpoint.metadata["msan.recipe"]) == recipe

    def test_the_best_is_the_best_of_the_log_and_scores_what_the_log_says(
        self, both: TrainConfig, roots: list[Path], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(both, validate_every=1, learning_rate=0.02, warmup_steps=0)
        result = train(roots, tmp_path, config)
        scores = {line["step"]: line["validation"] for line in read_log(tmp_path / "log.jsonl") if "validation" in line}
        assert result.best is not None
        best = load_checkpoint(result.best)
        step = int(best.metadata["msan.step"])
        assert scores[step]["deblurred_db"] == max(score["deblurred_db"] for score in scores.values())
        # Neither the first nor the last, or the test could not tell.
        assert 1 < step < 9
        held = open_data(roots, config, DataOptions(announce=say_nothing))
        validation = open_validation(held.held_sharp, held.held_pairs, config, say_nothing)
        assert validation is not None
        again = validation.score(network_from_checkpoint(best), CPU)
        assert again.deblurred_db == pytest.approx(scores[step]["deblurred_db"], abs=1e-3)
        assert again.blurred_db == pytest.approx(scores[step]["blurred_db"], abs=1e-3)

    def test_with_a_moving_average_that_is_what_is_kept(
        self, both: TrainConfig, whole: Path, roots: list[Path]
    ) -> None:
        del both, roots
        state = state_of(whole)
        kept = load_checkpoint(whole / "last.safetensors").state
        assert all(torch.equal(value, state["average"][f"module.{name}"]) for name, value in kept.items())
        assert not all(torch.equal(value, state["network"][name]) for name, value in kept.items())

    def test_another_folder_is_validated_on_if_asked(
        self, miniature: TrainConfig, roots: list[Path], make_pairs: MakePictures, tmp_path: Path
    ) -> None:
        sharp = tmp_path / "sharp"
        (tmp_path / "pairs").mkdir()
        pairs = make_pairs(tmp_path / "pairs", 2, seed=9)
        shutil.copytree(pairs / "target", sharp)
        blurred_db: list[float] = []
        for name, folder in (("a", pairs), ("b", sharp)):
            result = train(roots, tmp_path / name, dataclasses.replace(miniature, steps=1), validate=folder)
            assert result.best is not None
            blurred_db.append(read_log(tmp_path / name / "log.jsonl")[-1]["validation"]["blurred_db"])
        assert blurred_db[0] != blurred_db[1]

    def test_without_pictures_to_validate_on_there_is_no_best(
        self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
    ) -> None:
        result = train([sharp_folder], tmp_path, dataclasses.replace(miniature, steps=3))
        assert result.best is None
        assert not (tmp_path / "best.safetensors").exists()

    def test_damaged_validation_pictures_are_refused(
        self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "held").mkdir()
        (tmp_path / "held" / "a.png").write_bytes(b"no picture")
        with pytest.raises(MsanError, match=r"a\.png is not a JPEG"):
            train([sharp_folder], tmp_path / "run", miniature, validate=tmp_path / "held")

    def test_what_was_stopped_with_other_data_or_another_recipe_is_refused(
        self, both: TrainConfig, roots: list[Path], whole: Path, make_pictures: MakePictures, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        shutil.copytree(whole, run)
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        other = make_pictures(tmp_path / "other", 3, seed=8)
        attempts = [
            ([other, roots[1]], both, "another set of pictures"),
            ([roots[0]], both, "another set of pictures"),
            (roots, dataclasses.replace(both, seed=1), "another seed"),
            (roots, dataclasses.replace(both, batch=4), "another batch, number of samples a step"),
        ]
        for data, config, words in attempts:
            with pytest.raises(RunFolderError, match=f"run holds a run with {words}.*choose another folder"):
                train(data, run, config)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before

    def test_pictures_may_be_moved(self, both: TrainConfig, roots: list[Path], whole: Path, tmp_path: Path) -> None:
        shutil.copytree(whole, tmp_path / "run")
        moved = [Path(shutil.copytree(root, tmp_path / f"moved{i}" / root.name)) for i, root in enumerate(roots)]
        train(moved, tmp_path / "run", dataclasses.replace(both, steps=10))

    @pytest.mark.parametrize("damage", ["half", "other"])
    def test_a_damaged_state_is_named_with_what_to_do(
        self, damage: str, both: TrainConfig, roots: list[Path], whole: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        data = (tmp_path / "state.pt").read_bytes()
        (tmp_path / "state.pt").write_bytes(data[: len(data) // 2])
        if damage == "other":
            torch.save({"step": 3}, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match=r"Remove it to start again"):
            train(roots, tmp_path, both)

    @pytest.mark.parametrize("place", ["file", "below a file"])
    def test_an_output_that_cannot_be_written_is_refused(
        self, place: str, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        run = tmp_path / "file" if place == "file" else tmp_path / "file" / "run"
        with pytest.raises(RunFolderError, match=r"cannot write into .*file.* choose another folder"):
            train([sharp_folder], run, miniature)

    @pytest.mark.parametrize("failing", ["state.pt", "last.safetensors", "best.safetensors"])
    def test_a_disk_that_is_full_leaves_the_last_good_state_and_nothing_half(
        self,
        failing: str,
        both: TrainConfig,
        roots: list[Path],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        written: list[str] = []
        write_bytes = Path.write_bytes

        def filling(path: Path, data: bytes) -> int:
            name = path.name.removeprefix(".msan-").rsplit(".", 2)[0]
            written.append(name)
            if name == failing and written.count(name) == 2:
                write_bytes(path, data[:100])
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return write_bytes(path, data)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", filling)
            with pytest.raises(RunFolderError, match=rf"cannot write .*{failing}: No space left on device") as raised:
                train(roots, tmp_path, both, report_every=1, save_every=3)
        assert raised.value.exit_code == 2
        assert not list(tmp_path.glob(".*.tmp"))
        assert RunFolder(tmp_path).load_state() is not None
        load_checkpoint(tmp_path / "last.safetensors")
        train(roots, tmp_path, both, report_every=1, save_every=3)
        assert_same_run(tmp_path, whole)


class TestNotANumber:
    def test_a_learning_rate_beyond_reason_stops_with_step_and_pictures(
        self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
    ) -> None:
        config = dataclasses.replace(miniature, learning_rate=1e30, warmup_steps=0)
        with pytest.raises(TrainError) as raised:
            train([sharp_folder], tmp_path, config, save_every=1)
        words = str(raised.value)
        step = state_of(tmp_path)["step"]
        assert f"the loss is nan at step {step + 1}; its batch: {sharp_folder}/00" in words
        assert "lower learning rate" in words
        assert raised.value.exit_code == 2
        load_checkpoint(tmp_path / "last.safetensors")

    def test_a_run_goes_on_from_the_state_before(
        self,
        both: TrainConfig,
        roots: list[Path],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        calls = itertools.count()

        def sick_loss(deblurred: Tensor, sharp: Tensor) -> Tensor:
            return bce_loss(deblurred, sharp) * (math.nan if next(calls) == 5 else 1)

        with monkeypatch.context() as patch:
            patch.setattr("msan.training.trainer.loss_named", lambda name: {"bce": sick_loss}[name])
            with pytest.raises(TrainError, match=r"the loss is nan at step 6; its batch: .*\.png\. "):
                train(roots, tmp_path, both, report_every=1, save_every=2)
        assert state_of(tmp_path)["step"] == 4
        train(roots, tmp_path, both, report_every=1)
        assert_same_run(tmp_path, whole)

    def test_weights_that_are_no_numbers_are_not_kept(
        self, miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
    ) -> None:
        # Attention has no gradient while its gain is 0: 0 / (0 + epsilon) is no number for an epsilon that rounds to 0.
        config = dataclasses.replace(miniature, epsilon=1e-60, held_back=2)
        for every in (1, 5):
            with pytest.raises(TrainError, match=r"at step 2|after step 1"):
                train([sharp_folder], tmp_path, dataclasses.replace(config, validate_every=every), save_every=1)
            assert {path.name for path in tmp_path.iterdir()} <= {".lock", "train.json", "log.jsonl"}


class TestBadPictures:
    @pytest.fixture
    def damaged(self, make_pictures: MakePictures, tmp_path: Path) -> Path:
        """Six pictures, of which 003.png is cut short in the middle."""
        folder = make_pictures(tmp_path / "pictures", 6)
        data = (folder / "003.png").read_bytes()
        (folder / "003.png").write_bytes(data[: len(data) // 2])
        return folder

    @pytest.fixture
    def config(self, miniature: TrainConfig) -> TrainConfig:
        return dataclasses.replace(miniature, batch=1, steps=12)

    @pytest.mark.parametrize("cache", ["memory", "off"])
    def test_one_met_in_the_middle_of_an_epoch_stops_the_run_which_goes_on_once_it_is_repaired(
        self, cache: Any, config: TrainConfig, damaged: Path, make_pictures: MakePictures, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        data = DataOptions(announce=say_nothing, cache=cache)
        options = TrainOptions(data=data, report_every=1, save_every=1)
        with pytest.raises(
            TrainError, match=r"003\.png cannot be decoded.*\(step \d\)\. Repair it.*--skip-bad"
        ) as raised:
            train_with_team([damaged], run, config, ALONE, options)
        assert raised.value.exit_code == 2
        step = state_of(run)["step"]
        assert 0 < step < 6
        assert f"(step {step + 1})" in str(raised.value)
        make_pictures(damaged, 6)
        train([damaged], run, config, report_every=1, save_every=1)
        train([damaged], tmp_path / "whole", config, report_every=1)
        assert_same_run(run, tmp_path / "whole")

    def test_with_skip_bad_it_is_passed_over_named_once_and_counted(
        self, config: TrainConfig, damaged: Path, tmp_path: Path
    ) -> None:
        heard: list[str] = []
        result = train([damaged], tmp_path / "run", config, skip_bad=True, announce=heard.append)
        assert list(result.bad) == [str(damaged / "003.png")]
        (skipped,) = [text for text in heard if text.startswith("skipped: ")]
        assert skipped.startswith(f"skipped: {damaged}/003.png cannot be decoded: ")
        assert state_of(tmp_path / "run")["step"] == 12

    def test_a_pair_of_unequal_size_is_a_bad_picture(
        self, config: TrainConfig, make_pairs: MakePictures, tmp_path: Path
    ) -> None:
        (tmp_path / "pairs").mkdir()
        pairs = make_pairs(tmp_path / "pairs", 2)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(pairs / "target" / "001.png")
        with pytest.raises(TrainError, match=r"001\.png is 40×48 px but its sharp partner .*001\.png is 40×40 px"):
            train([pairs], tmp_path / "run", config)
        result = train([pairs], tmp_path / "run", config, skip_bad=True)
        assert list(result.bad) == [str(pairs / "input" / "001.png")]

    @pytest.mark.parametrize("skip_bad", [True, False])
    def test_nothing_but_bad_pictures_is_refused_either_way(
        self, skip_bad: bool, config: TrainConfig, tmp_path: Path
    ) -> None:
        for index in range(3):
            tmp_path.joinpath(f"{index}.png").write_bytes(b"no picture")
        with pytest.raises(MsanError, match=r"none of 3 pictures can be decoded. The first: .*\d\.png is not a"):
            train([tmp_path], tmp_path / "run", config, skip_bad=skip_bad)


def test_pictures_smaller_than_a_crop_with_its_margin_are_refused(
    miniature: TrainConfig, sharp_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="none of 3 pictures has sides of 72 px or more"):
        train([sharp_folder], tmp_path / "run", dataclasses.replace(miniature, crop_px=64))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network_is_refused_and_another_may_be_tried(
    miniature: TrainConfig, sharp_folder: Path, make_checkpoint: Callable[[ModelSpec], Any], tmp_path: Path
) -> None:
    wrong, right = (make_checkpoint(ModelSpec(stages=n, base_channels=4, resblocks=1)).path for n in (2, 1))
    with pytest.raises(MsanError, match="is a msan-2x4c1r network, and the recipe trains msan-1x4c1r"):
        train([sharp_folder], tmp_path, dataclasses.replace(miniature, init=str(wrong)))
    result = train([sharp_folder], tmp_path, dataclasses.replace(miniature, init=str(right), steps=1))
    assert load_checkpoint(result.last).spec == miniature.spec
