"""``msan evaluate`` as a command: on miniature data sets, with its files, its errors and its exit codes."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from typer.testing import CliRunner, Result

from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan.commands.evaluate import evaluate
from msan.evaluation.methods import deblur_with_network
from msan.evaluation.ssim import ssim_matlab3d
from msan_runtime.attention import GLOBAL, Attention
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MsanError

Msan = Callable[..., Result]

BARE = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "safetensors", "polygraphy", "onnxscript"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from msan_runtime.cli import main
main()
"""


@pytest.fixture
def msan() -> Msan:
    """``msan evaluate`` in this process; an error that the root command would print comes out as it is."""
    app = typer.Typer()
    app.command()(evaluate)

    def run(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(result.exception, MsanError):
            raise result.exception
        return result

    return run


def smooth(seed: int, height: int = 40, width: int = 48) -> PictureArray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, picture: PictureArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def pixels(path: Path) -> PictureArray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture
def gopro(tmp_path: Path) -> Path:
    root = tmp_path / "GOPRO_Large"
    for seed, name in enumerate(("A/{}/000001.png", "A/{}/000002.png", "B/{}/000001.png")):
        save(root / "test" / name.format("sharp"), smooth(seed))
        blurred = smooth(seed).astype(int) + np.random.default_rng(seed).integers(-20, 21, (40, 48, 3))
        save(root / "test" / name.format("blur"), np.clip(blurred, 0, 255).astype(np.uint8))
    return root


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        save(tmp_path / "plain" / f"{name}.png", smooth(seed, 80, 88))
    return tmp_path / "plain"


def sharp_as_results(root: Path, out: Path) -> Path:
    """A folder of results that are the sharp pictures."""
    for file in sorted(root.rglob("sharp/*.png")):
        save(out / file.parents[1].name / file.name, pixels(file))
    return out


def test_the_figures_are_those_of_the_files(msan: Msan, gopro: Path, tiny: Checkpoint, tmp_path: Path) -> None:
    done = msan(tiny.path, gopro, "--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv", "--backend", "torch-cpu")
    assert done.exit_code == 0, done.output
    body = json.loads((tmp_path / "s.json").read_text())
    network = network_from_checkpoint(tiny)
    expected: list[float] = []
    for name, line in zip(("A/{}/000001", "A/{}/000002", "B/{}/000001"), body["scores"], strict=True):
        blurred, sharp = (pixels(gopro / "test" / f"{name.format(kind)}.png") for kind in ("blur", "sharp"))
        assert line["name"] == name.replace("/{}", "")
        for when, picture in (("blurred", blurred), ("deblurred", deblur_with_network(network, blurred))):
            assert line[f"{when}_db"] == pytest.approx(peak_signal_noise_ratio(sharp, picture, data_range=255))
            ssim = structural_similarity(sharp, picture, channel_axis=2, data_range=255)
            assert line[f"{when}_ssim_skimage"] == pytest.approx(ssim)
            assert line[f"{when}_ssim_matlab3d"] == ssim_matlab3d(picture, sharp)
        expected.append(line["deblurred_db"])
    assert body["deblurred_db"] == pytest.approx(np.mean(expected))
    assert (body["layout"], body["split"], body["data"], body["pictures"]) == ("gopro", "test", "GoPro", 3)
    assert body["method"]["sha256"] == tiny.sha256
    with (tmp_path / "s.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["deblurred_db"]) for line in lines] == expected
    assert f"{np.mean(expected):.2f}" in done.stdout
    assert "peers are not printed for GoPro: 3 of 1111 pairs" in done.stdout


def test_a_checkpoint_is_measured_with_the_attention_asked_for(
    msan: Msan, gopro: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    asked = ("--attention", "window:16", "--backend", "torch-cpu", "--ssim", "none")
    assert msan(tiny.path, gopro, *asked, "--json", tmp_path / "s.json").exit_code == 0
    body = json.loads((tmp_path / "s.json").read_text())
    assert body["method"]["attention"] == "window:16"
    blurred, sharp = (pixels(gopro / "test" / "A" / kind / "000001.png") for kind in ("blur", "sharp"))
    found: list[float] = []
    for attention in (Attention(window_px=16), GLOBAL):
        picture = deblur_with_network(network_from_checkpoint(tiny, attention), blurred)
        found.append(peak_signal_noise_ratio(sharp, picture, data_range=255))
    assert body["scores"][0]["deblurred_db"] == pytest.approx(found[0], abs=1e-9)
    assert abs(found[0] - found[1]) > 1e-4


def test_results_that_are_the_sharp_pictures_are_infinitely_good(msan: Msan, gopro: Path, tmp_path: Path) -> None:
    out = sharp_as_results(gopro, tmp_path / "out")
    done = msan(out, gopro, "--json", tmp_path / "s.json", "--sheet", tmp_path / "sheet.png", "--ssim", "skimage")
    assert done.exit_code == 0, done.output
    assert "pictures that another network made" in done.stderr
    body = json.loads((tmp_path / "s.json").read_text())
    assert (body["deblurred_db"], body["deblurred_ssim_skimage"], body["worse"]) == ("inf", 1.0, 0)
    assert "time_ms" not in body
    assert pixels(tmp_path / "sheet.png").shape[1] > 1000


def test_a_folder_of_sharp_pictures_is_the_fixed_blur_set_and_said_so(
    msan: Msan, plain: Path, tiny: Checkpoint, tmp_path: Path
) -> None:
    done = msan(tiny.path, plain, "--json", tmp_path / "s.json", "--ssim", "none")
    assert "plain: 2 sharp pictures, blurred with the fixed blur set" in done.stderr
    body = json.loads((tmp_path / "s.json").read_text())
    assert (body["blur_set_version"], body["pictures"], body["layout"]) == (1, 2, "blur-set")
    assert [one["length_px"] for one in body["scores"]] in ([2.0, 18.0], [18.0, 2.0])
    assert "ssim_skimage" not in str(body)


def test_a_limit_and_several_sets(msan: Msan, gopro: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for folder in ("input", "target"):
        for seed in range(3):
            save(mine / folder / f"{seed}.png", smooth(seed))
    out = sharp_as_results(gopro, tmp_path / "out")
    for seed in range(2):
        save(out / f"{seed}.png", smooth(seed))
    done = msan(out, gopro, mine, "--limit", "2", "--json", tmp_path / "s.json", "--ssim", "none")
    assert "GoPro: 2 of 3 pairs (layout gopro, test)" in done.stderr
    sets = json.loads((tmp_path / "s.json").read_text())["sets"]
    assert [(one["data"], one["pictures"], one["pictures_found"]) for one in sets] == [("GoPro", 2, 3), ("mine", 2, 3)]
    assert sets[1]["blurred_db"] == "inf"


def test_a_bad_pair_stops_or_is_skipped(msan: Msan, gopro: Path, tmp_path: Path) -> None:
    out = sharp_as_results(gopro, tmp_path / "out")
    (gopro / "test/A/blur/000002.png").write_bytes(b"no picture")
    with pytest.raises(MsanError, match=r"A/blur/000002\.png is not a JPEG"):
        msan(out, gopro, "--json", tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()
    done = msan(out, gopro, "--json", tmp_path / "s.json", "--skip-bad", "--ssim", "none")
    assert "skipped: A/000002: " in done.stderr
    assert "2 pictures worse; 1 skipped" in done.stdout
    body = json.loads((tmp_path / "s.json").read_text())
    assert (body["pictures"], body["pictures_found"]) == (2, 3)
    assert body["skipped"][0]["name"] == "A/000002"


def test_outputs_that_cannot_be_written_fail_before_the_run(msan: Msan, gopro: Path, tmp_path: Path) -> None:
    """The model does not exist, and that is found later."""
    for option, path, words in [
        ("--json", "gone/s.json", "there is no folder"),
        ("--csv", "gone/s.csv", "there is no folder"),
        ("--sheet", "gone/s.png", "there is no folder"),
        ("--json", "GOPRO_Large", "it is a folder"),
        ("--sheet", "s.gif", r"must end in \.jpeg, \.jpg"),
    ]:
        with pytest.raises(MsanError, match=words):
            msan("missing.pth", gopro, option, tmp_path / path)
    with pytest.raises(MsanError, match="would be written twice"):
        msan("missing.pth", gopro, "--json", tmp_path / "s", "--csv", tmp_path / "s")


def test_a_missing_model_is_named(msan: Msan, gopro: Path) -> None:
    with pytest.raises(MsanError, match=r"no checkpoint, ONNX file, bundle or folder of pictures at missing\.pth"):
        msan("missing.pth", gopro)


def test_realblur_is_aligned(msan: Msan, tmp_path: Path) -> None:
    """The result is the sharp picture moved by two pixels."""
    scene = smooth(3, 140, 160)
    root = tmp_path / "RealBlur"
    folder = "RealBlur-J_ECC/scene001"
    save(root / folder / "gt" / "gt_1.png", scene[8:-8, 8:-8])
    save(root / folder / "blur" / "blur_1.png", scene[8:-8, 8:-8] // 2)
    save(tmp_path / "out" / "scene001" / "blur_1.png", scene[10:-6, 10:-6])
    (root / "RealBlur_J_test_list.txt").write_text(f"{folder}/gt/gt_1.png {folder}/blur/blur_1.png\n")
    done = msan(tmp_path / "out", root, "--json", tmp_path / "s.json", "--ssim", "skimage")
    body = json.loads((tmp_path / "s.json").read_text())
    assert math.isfinite(body["deblurred_aligned_db"])
    assert body["deblurred_aligned_db"] > body["deblurred_db"] + 8
    # Intensity is matched too: half as bright is as good as the sharp picture but for rounding.
    assert body["blurred_aligned_db"] > 40 > body["blurred_db"]
    assert body["deblurred_aligned_ssim"] > body["deblurred_ssim_skimage"]
    assert "aligned: RealBlur's published procedure" in done.stdout


def bare(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``msan evaluate`` where torch, onnx and safetensors are not installed."""
    command = [sys.executable, "-c", BARE, "evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_bundle_is_evaluated_without_torch(gopro: Path, tmp_path: Path) -> None:
    done = bare("msan-s", gopro, "--backend", "ort-cpu", "--json", "s.json", "--sheet", "s.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    body = json.loads((tmp_path / "s.json").read_text())
    assert (body["method"]["backend"], body["pictures"]) == ("ort-cpu", 3)
    assert "torch" not in body["versions"]
    assert body["time_ms"] > 0


def test_a_checkpoint_without_torch_names_the_extra(gopro: Path, tmp_path: Path) -> None:
    done = bare("msan-s", gopro, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'msan[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_run_leaves_no_file(
    msan: Msan, gopro: Path, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: PictureArray) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("msan.evaluation.evaluate.psnr_db", interrupt)
    before = sorted(tmp_path.iterdir())
    done = msan(tiny.path, gopro, "--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv", "--backend", "torch-cpu")
    assert done.exit_code == 130
    assert sorted(tmp_path.iterdir()) == before
