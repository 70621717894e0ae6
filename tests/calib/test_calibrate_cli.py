"""``msan calibrate`` from outside: files, tables, exit codes, and words for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tests.calib.graphs import plain_graph, plant_scaling, set_weight, weight_of

MSAN = Path(sys.executable).with_name("msan")
Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--count", "4", "--size", "48")


@pytest.fixture
def msan(tmp_path: Path) -> Run:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(MSAN), *(str(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "other.onnx"
    onnx.save(plain_graph(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photographs without partners."""
    where = tmp_path / "photos"
    where.mkdir()
    rng = np.random.default_rng(5)
    for index in range(4):
        coarse = rng.integers(0, 256, (8, 8, 3)).repeat(10, axis=0).repeat(10, axis=1)
        Image.fromarray(coarse.astype(np.uint8)).save(where / f"{index}.png")
    return where


def refused(finished: subprocess.CompletedProcess[str], words: str, code: int = 2) -> None:
    assert finished.returncode == code, finished.stderr
    assert words in " ".join(finished.stderr.split())
    assert "Traceback" not in finished.stderr
    assert finished.stderr.count("\n") <= 4


def test_int8_is_written_with_its_report_and_plot(msan: Run, graph: Path, tmp_path: Path) -> None:
    finished = msan("calibrate", graph, "-o", "out/q.onnx", "--precision", "int8", "--budget", "1dB", *SMALL)
    assert finished.returncode == 0, finished.stderr
    assert "INT8: 6 of 8 convolutions" in finished.stdout
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"q.onnx", "q.calibration.json", "q.frontier.png"}
    body = json.loads((out / "q.calibration.json").read_text())
    told = {prop.key: prop.value for prop in onnx.load(out / "q.onnx").metadata_props}
    assert body["schema_version"] == 1
    assert told["msan.precision"] == "int8"
    assert json.loads(told["msan.quantized"]) == body["quantized"]["convolutions"]
    assert told["msan.samples_sha256"] == body["samples"]["sha256"]
    assert len(body["quantized"]["frontier"]) >= 3
    with Image.open(out / "q.frontier.png") as picture:
        assert picture.format == "PNG"


def test_the_short_form_is_fp16_and_shows_its_islands(msan: Run, tmp_path: Path) -> None:
    onnx.save(plant_scaling(plain_graph(), "t2", 1e6), tmp_path / "loud.onnx")
    finished = msan("calibrate", "loud.onnx", "-o", "h.onnx", *SMALL)
    assert finished.returncode == 0, finished.stderr
    assert "planted/up" in finished.stdout
    assert "t2_big reaches" in " ".join(finished.stdout.split())
    assert "found with 2 evaluations" in finished.stdout
    shown = msan("inspect", "h.onnx")
    assert "8 × convolution fp16" in shown.stdout
    assert "planted/up" in shown.stdout


def test_two_runs_write_the_same_bytes(msan: Run, graph: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        assert msan("calibrate", graph, "-o", name, "--precision", "fp8", "--budget", "1", *SMALL).returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_ranges_are_those_of_the_tensors(msan: Run, folder: Path, tmp_path: Path) -> None:
    model = plain_graph()
    dead = weight_of(model, "k2").copy()
    dead[1] = 0
    onnx.save(plant_scaling(set_weight(model, "k2", dead), "t4", 1e7), tmp_path / "loud.onnx")
    finished = msan(
        "calibrate", "ranges", "loud.onnx", "--samples", folder, *SMALL, "--json", "r.json", "--plot", "r.png"
    )
    assert finished.returncode == 0, finished.stderr
    assert "1 hold values that overflow FP16" in finished.stdout
    body = json.loads((tmp_path / "r.json").read_text())
    by_name = {entry["tensor"]: entry for entry in body["tensors"]}
    big, small = by_name["t4_big"], by_name["t4"]
    assert big["high"] == pytest.approx(1e7 * small["high"], rel=1e-5)
    assert big["overflow_share"] > 0.5
    assert small["overflow_share"] == 0
    assert {entry["tensor"]: entry["dead_channels"] for entry in body["weights"]}["k2"] == 1
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_samples_without_truth_are_judged_by_what_fp32_is_away(msan: Run, graph: Path, folder: Path) -> None:
    finished = msan(
        "calibrate", graph, "-o", "q.onnx", "--precision", "int8", "--budget", "3", "--samples", folder, *SMALL
    )
    assert finished.returncode == 0, finished.stderr
    assert "taking FP32 pictures to have 32 dB" in finished.stdout


def test_bad_input_is_refused_in_words(msan: Run, graph: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.png").write_bytes(b"no picture")
    one = tmp_path / "one"
    one.mkdir()
    (one / "0.png").write_bytes((folder / "0.png").read_bytes())
    values = weight_of(plain_graph(), "k1").copy()
    values[0, 0, 0, 0] = np.nan
    onnx.save(set_weight(plain_graph(), "k1", values), tmp_path / "nan.onnx")
    int8 = ("--precision", "int8")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((graph, "--samples", tmp_path / "none"), "no folder of samples at"),
        ((graph, "--samples", tmp_path / "empty"), "no JPEG, PNG, WebP or TIFF picture in"),
        ((graph, "--samples", broken), "can be used as a sample"),
        ((graph, "--samples", one, *int8), "give two pictures or more"),
        ((tmp_path / "nan.onnx",), "1 values of weight k1 are NaN or infinite"),
        ((graph, *int8, "--budget", "0dB"), "a budget is more than 0 dB, for example 0.10dB, not 0"),
        ((graph, *int8, "--budget", "much"), "a budget is a number of dB"),
        ((graph, "--precision", "fp8", "--gpu", "rtx3090"), "sm_86 has no FP8. It needs sm_89 or later"),
        ((graph, "--size", "50"), "a multiple of 8 px"),
    ]
    for arguments, words in cases:
        refused(msan("calibrate", *arguments, "-o", "q.onnx"), words)
    refused(msan("calibrate", graph, "-o", graph), "is the model itself and would be overwritten")
    assert not (tmp_path / "q.onnx").exists()


def test_a_budget_that_nothing_meets_is_exit_code_1(msan: Run, graph: Path, folder: Path, tmp_path: Path) -> None:
    finished = msan(
        "calibrate", graph, "-o", "q.onnx", "--precision", "int8", "--budget", "1e-9", "--samples", folder, *SMALL
    )
    refused(finished, "no block can be int8 within 1e-09 dB", code=1)
    assert not list(tmp_path.glob("q.*"))
