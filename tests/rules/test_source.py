"""Rules of the house that lint does not know: length of functions, paths of machines, private names."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("msan", "runtime", "export", "calib")


def function_lengths() -> dict[str, int]:
    """Lines of each function of the four rooms, without its docstring."""
    lengths: dict[str, int] = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    lengths[f"{path.name}:{node.name}:{node.lineno}"] = length(node)
    return lengths


def length(node: ast.FunctionDef) -> int:
    first = node.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_functions_are_short() -> None:
    lengths = function_lengths()
    assert not {name: n for name, n in lengths.items() if n > 70}
    assert statistics.median(lengths.values()) <= 8
    assert sum(n > 35 for n in lengths.values()) <= 0.05 * len(lengths)


def test_modules_say_what_they_do_and_what_they_offer() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), path
            names = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
            assert path.name == "__init__.py" or "__all__" in names, path


def test_tracked_files_hold_no_path_of_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/\w")
    for name in tracked.stdout.split("\n"):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".txt", ".yml"} and path.is_file():
            assert not pattern.search(path.read_text()), name
