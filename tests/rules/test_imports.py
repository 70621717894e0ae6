"""Import boundaries: what each room may import, read from the source and tried in a bare interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROOMS = {
    "msan": ROOT / "msan" / "msan",
    "msan_runtime": ROOT / "runtime" / "msan_runtime",
    "msan_export": ROOT / "export" / "msan_export",
    "msan_calib": ROOT / "calib" / "msan_calib",
}
FORBIDDEN = {
    "msan": {"msan_export", "msan_calib"},
    "msan_runtime": {"msan", "msan_export", "msan_calib", "torch", "onnx"},
    "msan_export": set[str](),
    "msan_calib": {"msan", "msan_export", "torch"},
}

BARE = """
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "safetensors", "polygraphy", "onnxscript"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
import msan_runtime
names = [m.name for m in pkgutil.walk_packages(msan_runtime.__path__, "msan_runtime.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere in it, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = list(ROOMS[room].rglob("*.py"))
    assert files
    broken = {path.name: sorted(imported(path) & FORBIDDEN[room]) for path in files}
    assert not {name: names for name, names in broken.items() if names}


def test_every_runtime_module_imports_without_torch_and_onnx() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_command_line_starts_without_torch_and_onnx() -> None:
    bare = BARE.partition("import msan_runtime")[0]
    code = f"{bare}\nsys.argv = ['msan', '--help']\nfrom msan_runtime.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deblur" in done.stdout


def test_a_command_that_needs_torch_names_the_extra() -> None:
    bare = BARE.partition("import msan_runtime")[0]
    code = f"{bare}\nsys.argv = ['msan', 'train', '.', '-o', 'run']\nfrom msan_runtime.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'msan[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_runtime_imports_no_backend() -> None:
    code = "import sys, msan_runtime; print([m for m in ('onnxruntime', 'PIL', 'cuda', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
