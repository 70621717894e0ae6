"""``msan doctor`` in environments with pieces missing: packages that are absent, broken, crash, hang or clash."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msan_runtime.doctor import packages, trial
from msan_runtime.doctor.trial import try_backend
from msan_runtime.manifest import SelfTest, describe_file, load_manifest, save_manifest

MSAN = [sys.executable, "-c", "from msan_runtime.cli import main; main()"]


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages hide the installed ones from commands started by the test."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


def shadow(folder: Path, package: str, code: str) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)


def distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves of an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([*MSAN, "doctor", "--json", "-", *arguments], capture_output=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_whole_machine_is_healthy() -> None:
    done = subprocess.run([*MSAN, "doctor"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "ok   ort-cpu: " in done.stdout
    assert "Fastest here: " in done.stdout


def test_the_json_says_what_the_screen_says(bundle_folder: Path) -> None:
    code, body = doctor("--bundle", str(bundle_folder))
    assert code == 0
    assert body["healthy"] is True
    trials = {one["backend"]: one for one in body["trials"]}
    assert trials["ort-cpu"]["provider"] == "CPUExecutionProvider"
    assert (
        body["fastest"]
        == min((one for one in trials.values() if one["works"]), key=lambda one: one["tile_ms"])["backend"]
    )
    states = {finding["subject"]: finding["state"] for finding in body["findings"]}
    assert states["ort-cpu"] == "ok"
    assert states["bundle"] == "note"  # it has no self-test


def test_a_wrong_picture_is_found(bundle_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(bundle_folder / "in.png")
    manifest = load_manifest(bundle_folder)
    files = (*manifest.files, describe_file(bundle_folder, "in.png"))
    test = SelfTest(blurred="in.png", deblurred="in.png")
    save_manifest(dataclasses.replace(manifest, files=files, self_test=test), bundle_folder)
    found = try_backend(str(bundle_folder), "ort-cpu")
    assert not found.works
    assert "failed the bundle's self-test" in found.problem


def test_no_backend_at_all_is_not_healthy(shadows: Path, bundle_folder: Path) -> None:
    for package in ("onnxruntime", "openvino", "tensorrt_rtx"):
        shadow(shadows, package, f"raise ModuleNotFoundError('no {package}', name='{package}')")
    code, body = doctor("--bundle", str(bundle_folder))
    assert code == 1
    assert (body["healthy"], body["fastest"]) == (False, None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (signal 11)"),
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13: cannot open"),
        ("raise RuntimeError('odd')", "RuntimeError: odd"),
        ("", "it has lost files"),
    ],
)
def test_a_broken_package_is_a_line_of_the_report(shadows: Path, bundle_folder: Path, code: str, words: str) -> None:
    shadow(shadows, "onnxruntime", code)
    found = try_backend(str(bundle_folder), "ort-cpu")
    assert not found.works
    assert words in found.problem


def test_a_broken_package_is_no_traceback_for_who_deblurs(shadows: Path, bundle_folder: Path, tmp_path: Path) -> None:
    shadow(shadows, "onnxruntime", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (16, 16)).save(picture)
    command = [*MSAN, "deblur", str(picture), "-o", str(tmp_path / "out"), "--bundle", str(bundle_folder)]
    done = subprocess.run([*command, "--backend", "ort-cpu"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "libcudart.so.13" in done.stderr


def test_a_backend_that_hangs_is_left(shadows: Path, bundle_folder: Path) -> None:
    shadow(shadows, "onnxruntime", "import time; time.sleep(60)")
    assert "did not answer within 2 s" in try_backend(str(bundle_folder), "ort-cpu", patience_s=2).problem


def test_both_onnxruntimes_are_a_clash(shadows: Path, bundle_folder: Path) -> None:
    distribution(shadows, "onnxruntime-gpu", "1.30.0")
    _, body = doctor("--bundle", str(bundle_folder))
    (finding,) = (one for one in body["findings"] if one["subject"] == "onnxruntime")
    assert finding["state"] == "bad"
    assert "both installed and overwrite each other" in finding["words"]
    assert finding["advice"].startswith(
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu==1.30.0'"
    )


def test_an_onnxruntime_without_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed_versions", lambda _: {"onnxruntime": "1.31.1"})
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    found = packages.clash()
    assert found is not None
    assert "without its files" in found[0]


def test_a_bundle_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MSAN, "doctor", "--bundle", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "BAD  bundle: " in done.stdout
    assert "No backend was tried" in done.stdout


def test_a_cache_that_cannot_be_written_is_a_note(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    code, body = doctor("--bundle", str(bundle_folder))
    assert code == 0
    (finding,) = (one for one in body["findings"] if one["subject"] == "cache")
    assert "cannot be written" in finding["words"]


def test_every_backend_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from msan_runtime.select import BACKENDS

    def tried(_bundle: str, name: str) -> trial.Trial:
        return trial.Trial(backend=name, works=False)

    monkeypatch.setattr(trial, "try_backend", tried)
    assert tuple(one.backend for one in trial.try_backends("any")) == BACKENDS


def test_a_damaged_onnxruntime_is_to_be_installed_again(shadows: Path, bundle_folder: Path) -> None:
    shadow(shadows, "onnxruntime", "raise ImportError('libonnxruntime.so: cannot open shared object file')")
    for package in ("openvino", "tensorrt_rtx"):
        shadow(shadows, package, f"raise ModuleNotFoundError('no {package}', name='{package}')")
    command = [*MSAN, "doctor", "--bundle", str(bundle_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "→ pip install --force-reinstall 'onnxruntime" in done.stdout
    assert "msan doctor" not in done.stdout.partition("ort-cuda")[2]
    assert "msan[cpu]" not in done.stdout.rpartition("No backend works")[2]


def test_a_bundle_whose_picture_even_the_processor_does_not_give_is_to_blame(bundle_folder: Path) -> None:
    manifest = load_manifest(bundle_folder)
    for name, colour in (("blurred", (90, 90, 90)), ("deblurred", (255, 0, 0))):
        Image.new("RGB", (64, 64), colour).save(bundle_folder / f"{name}.png")
    files = (*manifest.files, *(describe_file(bundle_folder, f"{name}.png") for name in ("blurred", "deblurred")))
    test = SelfTest(blurred="blurred.png", deblurred="deblurred.png")
    save_manifest(dataclasses.replace(manifest, files=files, self_test=test), bundle_folder)
    _, body = doctor("--bundle", str(bundle_folder))
    (finding,) = (one for one in body["findings"] if one["subject"] == "ort-cpu")
    assert "deploy the checkpoint again" in finding["advice"]
