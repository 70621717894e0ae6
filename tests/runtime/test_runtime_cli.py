"""``msan deblur``: exit codes, messages of a line or two, and results of every size."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.in_process import Command, Finished, in_process

from msan_runtime.contract import PictureArray
from msan_runtime.image import read_picture

Noise = Callable[..., PictureArray]
ORT_CPU = ("--backend", "ort-cpu")


@pytest.fixture
def msan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs ``msan`` in this process, as the lean install has it."""
    with in_process(monkeypatch, capsys, lean=True) as run:
        yield run


@pytest.fixture
def deblur(msan: Command, bundle_folder: Path) -> Command:
    """Runs ``msan deblur`` on the CPU with a bundle that inverts."""
    return lambda *arguments: msan("deblur", *arguments, "--bundle", bundle_folder, *ORT_CPU)


@pytest.fixture
def photo(tmp_path: Path, noise: Noise) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(noise(5, 7, 3)).save(path)
    return path


def check_message(finished: Finished, code: int, words: str) -> None:
    """A failed run says ``error: …`` with these words, in a line or two, and shows no traceback."""
    assert finished.code == code
    lines = finished.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, finished.err
    assert words in errors[0]
    assert len(lines) <= 2, finished.err
    assert "Traceback" not in finished.err + finished.out


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (8, 8, 3), (1, 4000, 3)])
def test_pictures_of_any_size_are_deblurred(
    deblur: Command, noise: Noise, shape: tuple[int, ...], tmp_path: Path
) -> None:
    pixels = noise(*shape)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    finished = deblur(tmp_path / "a.png", "-o", tmp_path / "out")
    assert finished.code == 0
    assert finished.out == f"1 of 1 pictures deblurred to {tmp_path / 'out'}\n"
    assert np.array_equal(read_picture(tmp_path / "out" / "a.png").pixels, 255 - pixels)


def test_one_picture_goes_to_the_file_named(deblur: Command, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "sharp.tif"
    assert deblur(photo, "-o", target).code == 0
    assert np.array_equal(read_picture(target).pixels, 255 - read_picture(photo).pixels)


def test_compare_writes_a_sheet_beside_each_result(deblur: Command, photo: Path, tmp_path: Path) -> None:
    assert deblur(photo, "-o", tmp_path / "out", "--compare").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo.png", "photo.compare.png"}


def test_clashes_are_refused_before_any_work(deblur: Command, photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(photo.with_suffix(".jpg"))
    finished = deblur(photo, photo.with_suffix(".jpg"), "-o", tmp_path / "out", "--format", "webp")
    check_message(finished, 2, "would both be written to")
    assert not (tmp_path / "out").exists()


def test_exit_code_1_if_some_failed(deblur: Command, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    finished = deblur(photo, tmp_path / "text.jpg", "-o", tmp_path / "out")
    assert finished.code == 1
    assert f"error: {tmp_path / 'text.jpg'} is not a JPEG" in finished.err
    assert finished.out == f"1 of 2 pictures deblurred to {tmp_path / 'out'}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo.png", ".msan-journal.jsonl"}


def test_exit_code_2_if_none_could_be_done(deblur: Command, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    finished = deblur(tmp_path / "text.jpg", "-o", tmp_path / "out")
    assert finished.code == 2
    assert "text.jpg is not a JPEG" in finished.err
    assert "Traceback" not in finished.err
    assert finished.out.startswith("0 of 1 pictures deblurred")


def test_a_missing_input_is_named(deblur: Command, tmp_path: Path) -> None:
    check_message(deblur(tmp_path / "missing.jpg", "-o", tmp_path / "out"), 2, "no file or folder")


def test_a_missing_input_and_an_empty_folder_do_not_stop_the_rest(deblur: Command, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    finished = deblur(tmp_path / "missing.jpg", photo, tmp_path / "empty", "-o", tmp_path / "out")
    assert finished.code == 1
    assert "no file or folder" in finished.err
    assert "picture in" in finished.err
    assert (tmp_path / "out" / "photo.png").is_file()


def test_an_empty_folder_is_an_error(deblur: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_message(deblur(tmp_path / "empty", "-o", tmp_path / "out"), 2, "no JPEG, PNG, WebP or TIFF picture in")


def test_an_input_is_never_replaced(deblur: Command, photo: Path) -> None:
    before = photo.read_bytes()
    check_message(deblur(photo, "-o", photo), 2, "would replace the input")
    assert photo.read_bytes() == before


@pytest.mark.parametrize("output", ["photo.png/out", "photo.png/out/a.png"])
def test_an_output_below_a_file_fails_before_the_work(
    deblur: Command, photo: Path, output: str, tmp_path: Path
) -> None:
    check_message(deblur(photo, "-o", tmp_path / output), 2, "Choose another -o")


def test_an_output_folder_that_is_a_file_fails_before_the_work(deblur: Command, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    check_message(deblur(photo, "-o", tmp_path / "out"), 2, f"cannot write to {tmp_path / 'out'}: File exists")


def test_an_unknown_backend_is_an_error(msan: Command, photo: Path, bundle_folder: Path, tmp_path: Path) -> None:
    finished = msan("deblur", photo, "-o", tmp_path / "out", "--bundle", bundle_folder, "--backend", "cpu")
    check_message(
        finished, 2, "no backend 'cpu'. There are: auto, rtx, tensorrt, ort-cuda, openvino-bf16, openvino, ort-cpu"
    )


def test_a_backend_that_cannot_run_is_an_error(msan: Command, photo: Path, bundle_folder: Path, tmp_path: Path) -> None:
    finished = msan("deblur", photo, "-o", tmp_path / "out", "--bundle", bundle_folder, "--backend", "tensorrt")
    check_message(finished, 2, "backend tensorrt: ")


def test_auto_notes_why_faster_backends_are_not_used(
    msan: Command, photo: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    finished = msan("deblur", photo, "-o", tmp_path / "out", "--bundle", bundle_folder)
    assert finished.code == 0
    note = next(line for line in finished.err.splitlines() if line.startswith("note: running on ort-"))
    assert "since rtx: " in note
    assert "tensorrt: " in note


@pytest.mark.parametrize("bundle", ["missing", "photo.png", "."])
def test_what_is_no_bundle_is_an_error(msan: Command, photo: Path, bundle: str, tmp_path: Path) -> None:
    finished = msan("deblur", photo, "-o", tmp_path / "out", "--bundle", tmp_path / bundle, *ORT_CPU)
    check_message(finished, 2, "is not a bundle" if bundle == "." else "no bundle at")


def test_a_changed_bundle_is_an_error(deblur: Command, photo: Path, bundle_folder: Path, tmp_path: Path) -> None:
    (bundle_folder / "fp32.onnx").write_bytes(b"changed")
    check_message(deblur(photo, "-o", tmp_path / "out"), 2, "was changed since the bundle was made")


def test_a_missing_package_gives_the_pip_command(
    deblur: Command, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    check_message(deblur(photo, "-o", tmp_path / "out"), 2, "pip install 'msan[cpu]'")


def test_markup_in_a_file_name_is_printed_as_it_is(deblur: Command, tmp_path: Path) -> None:
    name = tmp_path / "[red]holiday[].jpg"
    name.write_text("no picture")
    assert f"error: {name} is not" in deblur(name, "-o", tmp_path / "out").err


def test_a_file_name_commands_no_terminal(deblur: Command, photo: Path, tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a\x1b[31m.jpg", "b\x9b2J\x07.jpg", "c\udcff　é.jpg")]
    finished = deblur(photo, *names, "-o", tmp_path / "out")
    assert finished.code == 1
    assert [line.rpartition(os.sep)[2] for line in finished.err.splitlines() if line.startswith("error: ")] == [
        r"a\x1b[31m.jpg",
        r"b\x9b2J\x07.jpg",
        r"c\udcff　é.jpg",
    ]


@pytest.mark.parametrize("arguments", [("deblur",), ("deblur", "a.png"), ("deblur", "a.png", "--no-such"), ("nosuch",)])
def test_wrong_usage_ends_with_2_and_a_hint(msan: Command, arguments: tuple[str, ...]) -> None:
    finished = msan(*arguments)
    assert finished.code == 2
    assert "--help' for help." in finished.err
    assert "Traceback" not in finished.err


def test_the_version_is_the_installed_one(msan: Command) -> None:
    from importlib.metadata import version

    assert msan("--version").out == f"msan {version('msan')}\n"


def test_the_installed_command_works_as_a_process(photo: Path, bundle_folder: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("msan.exe" if os.name == "nt" else "msan")
    arguments = [command, "deblur", photo, tmp_path / "text.jpg", "-o", tmp_path / "out", "--bundle", bundle_folder]
    (tmp_path / "text.jpg").write_text("no picture")
    done = subprocess.run([*arguments, *ORT_CPU], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert np.array_equal(read_picture(tmp_path / "out" / "photo.png").pixels, 255 - read_picture(photo).pixels)
