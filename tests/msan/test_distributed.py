"""Processes that train together: the same curve as one process, one of them speaks, and all stop together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from msan.checkpoint import Checkpoint, load_checkpoint
from msan.spec import ModelSpec
from msan.training.distributed import DeviceError, Team, device_named, join_team
from msan.training.run_folder import read_log

# Loopback only, so that it does not matter what this machine is called.
LOCAL = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


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

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Launched: ...


@pytest.fixture
def recipe(tmp_path: Path, make_checkpoint: Callable[[ModelSpec], Checkpoint]) -> Path:
    """A network whose attention has a gain, trained on pairs and sharp pictures."""
    init = make_checkpoint(ModelSpec(stages=2, base_channels=4, resblocks=1)).path
    file = tmp_path / "tiny.toml"
    file.write_text(
        f"init = '{init}'\nnetwork = {{stages = 2, base_channels = 4, resblocks = 1}}\n"
        "steps = 8\ncrop_px = 32\nvalidation_px = 32\nlearning_rate = 1e-3\nwarmup_steps = 2\n"
        "ema_decay = 0.8\nclip_norm = 0.05\nheld_back = 2\nvalidate_every = 3\n"
        "blur = {length_px = [1.0, 4.0], roll_px = 0.0, zoom_px = 0.0, instants = 5}\n"
    )
    return file


def together(launcher: Launcher, *arguments: str | Path) -> list[Launched]:
    """Two processes, with what ``torchrun`` would set for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**LOCAL, "WORLD_SIZE": "2", "MASTER_PORT": port}
    return [launcher.start(*arguments, env={**shared, "RANK": r, "LOCAL_RANK": r}) for r in ("0", "1")]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "log.jsonl") if "loss" in line]


def validations(run: Path) -> list[dict[str, Any]]:
    return [line["validation"] for line in read_log(run / "log.jsonl") if "validation" in line]


class TestAlone:
    def test_without_torchrun_a_process_leads_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with join_team("cpu") as team:
            assert (team.rank, team.processes, team.device, team.leads) == (0, 1, torch.device("cpu"), True)
            assert team.sum(1.5, 2.0) == [1.5, 2.0]
            assert team.union({"a": "b"}) == {"a": "b"}

    def test_only_the_first_leads(self) -> None:
        teams = [Team(rank=rank, processes=3, device=torch.device("cpu")) for rank in range(3)]
        assert [team.leads for team in teams] == [True, False, False]

    @pytest.mark.parametrize("name", ["cuda:99", "cpux", "xpu", "gpu:0", "meta:x"])
    def test_a_device_that_is_not_here_is_named_with_those_that_are(self, name: str) -> None:
        with pytest.raises(DeviceError, match=rf"no device '{re.escape(name)}' here. There are: cpu") as raised:
            device_named(name)
        assert "\n" not in str(raised.value)
        assert device_named("cpu") == torch.device("cpu")


class TestTwoProcesses:
    @pytest.mark.parametrize("kinds", [["sharp"], ["pairs"]])
    def test_two_with_half_the_batch_have_the_curve_of_one(
        self, kinds: list[str], launcher: Launcher, recipe: Path, sharp_folder: Path, pair_folder: Path, tmp_path: Path
    ) -> None:
        folders = {"sharp": sharp_folder, "pairs": pair_folder}
        data = [folders[kind] for kind in kinds]
        options = ["--recipe", recipe, "--device", "cpu", "--report-every", "1"]
        two = together(launcher, "train", *data, "-o", tmp_path / "two", *options, "--batch", "4")
        one = launcher.start("train", *data, "-o", tmp_path / "one", *options, "--batch", "8")
        assert [process.wait() for process in (*two, one)] == [0, 0, 0], two[0].errors + two[1].errors + one.errors
        assert len(losses(tmp_path / "one")) == 8
        assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
        for ours, theirs in zip(validations(tmp_path / "two"), validations(tmp_path / "one"), strict=True):
            assert ours == pytest.approx(theirs, abs=0.02)
        ours, theirs = (load_checkpoint(tmp_path / name / "last.safetensors").state for name in ("two", "one"))
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
        # The leader speaks and writes.
        assert (two[1].output, two[1].errors) == ("", "")
        assert "last step" in two[0].output
        assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1

    def test_all_stop_and_save_when_one_is_asked_to_and_go_on_as_one_run(
        self, launcher: Launcher, recipe: Path, sharp_folder: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        options = ["--recipe", recipe, "--device", "cpu", "--report-every", "1", "--batch", "1"]
        both = together(launcher, "train", sharp_folder, "-o", run, *options, "--steps", "2000")
        self.wait_for_log(run)
        both[1].send(signal.SIGINT)
        assert [process.wait() for process in both] == [130, 130]
        assert re.search(r"error: stopped at step \d+ of 2000, saved to .*: the same command goes on", both[0].errors)
        assert both[1].errors == ""
        stopped = load_checkpoint(run / "last.safetensors").metadata["msan.step"]
        step = str(int(stopped) + 2)
        both = together(launcher, "train", sharp_folder, "-o", run, *options, "--steps", step)
        assert [process.wait() for process in both] == [0, 0], both[0].errors
        assert len(losses(run)) == int(step)

    def test_a_bad_picture_that_the_other_meets_is_told_by_the_leader(
        self, launcher: Launcher, recipe: Path, make_pictures: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = make_pictures(tmp_path / "pictures", 8)
        for index in (1, 3, 5, 6):
            (folder / f"{index:03d}.png").write_bytes(b"no picture")
        options = ["--recipe", recipe, "--device", "cpu", "--batch", "1", "--no-tensorboard", "--held-back", "0"]
        both = together(launcher, "train", folder, "-o", tmp_path / "skipping", *options, "--skip-bad")
        assert [process.wait() for process in both] == [0, 0], both[0].errors
        skipped = re.findall(r"skipped: .*/(\d+)\.png is not a", both[0].errors)
        assert sorted(skipped) == ["001", "003", "005", "006"]
        assert "4 pictures could not be decoded and were skipped" in both[0].output
        assert (both[1].output, both[1].errors) == ("", "")
        both = together(launcher, "train", folder, "-o", tmp_path / "stopping", *options)
        assert [process.wait() for process in both] == [2, 2]
        assert re.search(
            r"error: .*png is not a JPEG.*\(step 1\)\. Repair it, or train with --skip-bad", both[0].errors
        )
        assert both[1].errors == ""

    def test_the_other_ends_with_the_leader(
        self, launcher: Launcher, recipe: Path, sharp_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        options = ["--recipe", recipe, "--device", "cpu", "--batch", "1"]
        both = together(launcher, "train", sharp_folder, "-o", tmp_path / "file", *options)
        assert [process.wait() for process in both] == [2, 2]
        assert re.search(r"error: cannot write into .*file: .*choose another folder", both[0].errors)
        assert both[1].errors == ""

    @pytest.mark.slow
    def test_torchrun_starts_them_and_ctrl_c_stops_them(self, recipe: Path, sharp_folder: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        options = ["--recipe", recipe, "--device", "cpu", "--batch", "1", "--steps", "100000", "--report-every", "1"]
        command = [*torchrun, "-m", "msan", "train", sharp_folder, "-o", run, *options]
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **LOCAL},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.wait_for_log(run)
        # As a terminal does it: to every process.
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=200)
        assert process.returncode != 0
        assert printed.count("the same command goes on") == 1, printed
        assert load_checkpoint(run / "last.safetensors").metadata["msan.steps"] == "100000"

    @staticmethod
    def wait_for_log(run: Path) -> None:
        deadline = time.monotonic() + 200
        while not (run / "log.jsonl").exists() or not losses(run):
            assert time.monotonic() < deadline
            time.sleep(0.01)
