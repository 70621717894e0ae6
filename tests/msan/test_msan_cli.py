"""``msan train`` and ``msan evaluate`` from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

MSAN = Path(sys.executable).with_name("msan")


class Launched(Protocol):
    """A process of the ``msan`` command."""

    @property
    def output(self) -> str: ...
    @property
    def errors(self) -> str: ...
    def wait(self) -> int: ...


class Launcher(Protocol):
    """Starts the ``msan`` command."""

    def start(self, *arguments: str | Path) -> Launched: ...


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two steps of a tiny network, validated on every other picture."""
    file = tmp_path / "tiny.toml"
    file.write_text(
        "network = {stages = 1, base_channels = 4, resblocks = 1}\n"
        "steps = 2\nbatch = 1\ncrop_px = 32\nvalidation_px = 32\nheld_back = 2\n"
        "blur = {length_px = [1.0, 4.0], roll_px = 0.0, zoom_px = 0.0, instants = 5}\n"
    )
    return file


def test_train_then_evaluate(
    launcher: Launcher, recipe: Path, sharp_folder: Path, pair_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "a [run]"
    # The installed script itself, this once.
    command = [MSAN, "train", sharp_folder, pair_folder, "-o", run, "--recipe", recipe, "--device", "cpu"]
    trained = subprocess.run(command, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines() == [
        f"{run}/best.safetensors: msan-1x4c1r, best on the validation pictures",
        f"{run}/last.safetensors: msan-1x4c1r, last step",
    ]
    assert f"{sharp_folder}: 3 sharp pictures, to be blurred" in trained.stderr
    scores = tmp_path / "scores.json"
    measured = launcher.start("evaluate", run / "best.safetensors", pair_folder, "--ssim", "none", "--json", scores)
    assert measured.wait() == 0, measured.errors
    assert "deblurred_db" in scores.read_text()


def test_options_reach_the_run(launcher: Launcher, recipe: Path, sharp_folder: Path, tmp_path: Path) -> None:
    options = ["--loss", "mse", "--no-attention", "--steps", "3", "--validate-every", "1", "--report-every", "2"]
    trained = launcher.start("train", sharp_folder, "-o", tmp_path / "run", "--recipe", recipe, *options, "--cache=off")
    assert trained.wait() == 0, trained.errors
    assert trained.output.splitlines()[-1].endswith("last.safetensors: msan-1x4c1r-noattn, last step")
    config = json.loads((tmp_path / "run" / "train.json").read_text())["config"]
    assert (config["loss"], config["network"]["attention"], config["steps"]) == ("mse", False, 3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 3]
    assert [line["step"] for line in lines if "validation" in line] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "missing", "-o", "run"], "no folder of pictures at missing"),
        (["train", ".", "-o", "run"], "no JPEG, PNG, WebP or TIFF picture under ."),
        (["train", ".", "-o", "run", "--network", "large"], "no network named 'large'"),
        (["train", ".", "-o", "run", "--crop", "100"], "crop_px must be a multiple of 8, not 100"),
        (["train", ".", "-o", "run", "--learning-rate", "nan"], "learning_rate must be a positive number, not nan"),
        (["train", ".", "-o", "run", "--recipe", "my.toml"], "no recipe my.toml: neither a TOML file nor one of"),
        (["train", "SHARP", "-o", "run", "--device", "cuda:99"], "no device 'cuda:99' here. There are: cpu"),
        (["train", "SHARP", "-o", "run"], "none of 3 pictures has sides of "),
        (["train", "SHARP", "-o", "FILE", "--recipe", "RECIPE"], "cannot write into .*tiny.toml: .*another folder"),
        (["train", "SHARP", "-o", "run", "--recipe", "RECIPE", "--init", "msan-s"], "is a msan-s network, and the"),
        (
            ["train", "SHARP", "-o", "run", "--recipe", "RECIPE", "--learning-rate", "1e30"],
            "loss is nan at step 2; its",
        ),
        (["train", "SHARP", "-o", "run", "--recipe", "RECIPE", "--validate", "none"], "no folder of pictures at none"),
        (["evaluate", "missing.pth", "."], "error: "),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    arguments: list[str], words: str, launcher: Launcher, recipe: Path, sharp_folder: Path, tmp_path: Path
) -> None:
    places = {"SHARP": sharp_folder, "RECIPE": recipe, "FILE": recipe, "run": tmp_path / "run"}
    finished = launcher.start(*[places.get(argument, argument) for argument in arguments])
    assert finished.wait() == 2, finished.errors
    assert "Traceback" not in finished.errors
    lines = [line for line in finished.errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(words, lines[0]), lines[0]
    assert finished.errors.rstrip().endswith(lines[0])
    assert finished.output == ""
