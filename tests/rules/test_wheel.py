"""The wheel: what it must carry, and what it must not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a freshly built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl"))).namelist()


@pytest.mark.parametrize(
    "name",
    [
        "msan_runtime/models/msan-s/manifest.json",
        "msan_runtime/models/msan-s/msan-s.fp16.onnx",
        "msan_runtime/models/msan-s/msan-s.fp32.onnx",
        "msan_runtime/models/msan-s/msan-s.rtx.engine",
        "msan/weights/msan-s.safetensors",
        "msan/weights/msan-s.md",
        "msan_export/samples/square.jpg",
        "msan_export/report/templates/base.html",
        "msan_export/report/templates/style.css",
        "msan_export/report/templates/script.js",
        "msan_export/schemas/parity-2.schema.json",
        "msan_export/schemas/bundle-comparison-1.schema.json",
        "msan_calib/casts.py",
        "msan_calib/samples/input/city.jpg",
        "msan_calib/samples/target/city.jpg",
        "msan_runtime/py.typed",
        "msan_runtime/serve/page/index.html",
        "msan_runtime/serve/page/script.js",
        "msan_runtime/serve/page/openapi.json",
    ],
)
def test_the_wheel_carries(names: list[str], name: str) -> None:
    assert name in names


def test_the_wheel_holds_our_four_packages_and_nothing_else(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names if not name.startswith("msan-")}
    assert tops == {"msan", "msan_runtime", "msan_export", "msan_calib"}


def test_the_outer_folders_are_no_packages() -> None:
    for room in ("msan", "runtime", "export", "calib"):
        assert not (ROOT / room / "__init__.py").exists()
