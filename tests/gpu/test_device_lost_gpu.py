"""A GPU that fails under a run: the command ends in words, and nothing half-written is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.gpu.device import LOST_MSAN, MSAN, ran
from tests.gpu.lost import NO_FAULT
from tests.gpu.pictures import assert_alike, blurred_picture

from msan_runtime import Deblurrer
from msan_runtime.journal import JOURNAL_NAME

pytestmark = pytest.mark.gpu

PICTURES = 6
FATAL = 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of pictures that all differ."""
    folder = tmp_path / "source"
    folder.mkdir()
    for index in range(PICTURES):
        pixels = np.roll(blurred_picture(192, 256), 29 * index, axis=(0, 1))
        Image.fromarray(pixels).save(folder / f"{index + 1}.png")
    return folder


def assert_ended_in_words(done: subprocess.CompletedProcess[str], exit_code: int, errors: int, name: str) -> None:
    assert done.returncode != NO_FAULT, f"the GPU could not be broken: {done.stderr}"
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == errors
    assert all(name in line or "GPU" in line for line in told), told


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels_in(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_lost_device_ends_the_command_in_one_line(device_name: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "sharp.png"
    done = ran(LOST_MSAN, "1", "deblur", source / "1.png", "-o", target, "--backend", device_name)
    assert_ended_in_words(done, 2, 1, device_name)
    assert names_in(tmp_path) == {"source"}


def test_a_folder_run_keeps_what_was_done_and_goes_on(device_name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = ran(LOST_MSAN, str(FATAL), "deblur", source, "-o", out, "--backend", device_name, "--workers", "1")
    assert_ended_in_words(done, 1, PICTURES - FATAL + 1, device_name)
    whole = {f"{number}.png" for number in range(1, FATAL)}
    assert names_in(out) == whole | {JOURNAL_NAME}
    with Deblurrer.load(backend=device_name) as deblurrer:
        for name in whole:
            assert_alike(pixels_in(out / name), deblurrer.deblur(pixels_in(source / name)))
    again = ran(MSAN, "deblur", source, "-o", out, "--backend", device_name)
    assert again.returncode == 0, again.stderr
    assert f"({len(whole)} of them before)" in again.stdout
    assert names_in(out) == {f"{number}.png" for number in range(1, PICTURES + 1)} | {JOURNAL_NAME}
