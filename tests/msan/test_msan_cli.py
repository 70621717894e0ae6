"""``msan train`` and ``msan evaluate`` from the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MSAN = Path(sys.executable).with_name("msan")


def msan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MSAN, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two smooth random pictures of 160×200."""
    folder = tmp_path_factory.mktemp("sharp")
    for seed in range(2):
        coarse = np.random.default_rng(seed).integers(0, 256, (20, 25, 3), np.uint8)
        Image.fromarray(coarse).resize((200, 160), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")
    return folder


def test_train_then_evaluate(pictures: Path, tmp_path: Path) -> None:
    options = ("--steps", "2", "--batch", "1", "--crop", "32")
    trained = msan("train", pictures, "-o", tmp_path / "run", *options)
    assert trained.returncode == 0, trained.stderr
    model = tmp_path / "run" / "model.safetensors"
    evaluated = msan("evaluate", model, pictures, "--json", tmp_path / "scores.json")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pictures"] == len(scores["scores"]) == 2
    assert abs(scores["gain_db"] - (scores["deblurred_db"] - scores["blurred_db"])) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "missing", "-o", "run"], "no folder of pictures"),
        (["train", ".", "-o", "run"], "no JPEG, PNG, WebP or TIFF"),
        (["train", ".", "-o", "run", "--network", "large"], "no network named 'large'"),
        (["train", ".", "-o", "run", "--crop", "100"], "multiple of 8"),
        (["evaluate", "missing.pth", "."], "error: "),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = msan(*arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_an_interrupted_training_saves_and_goes_on(pictures: Path, tmp_path: Path) -> None:
    command = [MSAN, "train", pictures, "-o", tmp_path / "run", "--batch", "1", "--crop", "32"]
    process = subprocess.Popen([*command, "--steps", "100000"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command goes on" in errors
    stopped = re.search(rb"stopped at step (\d+)", errors)
    assert stopped is not None
    done = int(stopped.group(1))
    resumed = subprocess.run([*command, "--steps", str(done + 2)], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(log.read_text().splitlines()[-1])["step"] == done + 2


@pytest.mark.parametrize("rate", ["nan", "0", "-1"])
def test_a_senseless_learning_rate_is_refused(pictures: Path, tmp_path: Path, rate: str) -> None:
    finished = msan("train", pictures, "-o", tmp_path / "run", "--learning-rate", rate)
    assert finished.returncode == 2
    assert "learning rate must be a positive number" in finished.stderr


def test_a_run_folder_that_is_a_file_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    finished = msan("train", pictures, "-o", tmp_path / "run", "--crop", "32")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
