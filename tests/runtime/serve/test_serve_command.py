"""``msan serve`` that cannot start: one sentence, exit code 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"starlette", "uvicorn", "python_multipart", "prometheus_client", "h11", "anyio"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""
IMPORT_ALL = """
import importlib, pkgutil, msan_runtime
for module in pkgutil.walk_packages(msan_runtime.__path__, "msan_runtime."):
    importlib.import_module(module.name)
print("all")
"""
HIDDEN = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "uvicorn" else find(name, package)
"""
MAIN = "from msan_runtime.cli import main; main()"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def refused(*arguments: str) -> str:
    done = python(MAIN, "serve", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_every_module_imports_without_the_extra() -> None:
    done = python(BLOCKED + IMPORT_ALL)
    assert done.stdout == "all\n", done.stderr


def test_without_the_extra_it_is_named() -> None:
    done = python(HIDDEN + MAIN, "serve")
    assert done.returncode == 2
    assert done.stderr == "error: uvicorn is not installed. Install it with: pip install 'msan[serve]'\n"


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = refused("--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: " in told
    assert "Choose another --port" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bundle", "nowhere"), "no bundle at nowhere"),
        (("--max-body", "much"), "Invalid value for '--max-body': 'much' is no amount of memory"),
        (("--memory", "much"), "Invalid value for '--memory': 'much' is no amount of memory"),
        (("--tile", "much"), "Invalid value for '--tile': 'much' is no size"),
        (("--max-requests", "2", "--queue", "3"), "Invalid value for '--queue': 3 requests cannot wait where"),
        (("--allow-host", "http://x"), "'http://x' is no host's name"),
        (("--allow-host", "x:80"), "'x:80' is no host's name"),
        (("--allow-origin", "*"), "'*' is no origin"),
        (("--host", "256.256.256.256"), "Choose another --host"),
        (("--host", "a..b"), "Choose another --host"),
        (("--host", "192.0.2.1"), "Choose another --host"),
    ],
)
def test_what_cannot_be_served(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("--port", "0", *arguments)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("option", ["--max-megapixels", "--body-timeout", "--drain"])
def test_times_and_sizes_are_finite(option: str, value: str) -> None:
    assert f"Invalid value for '{option}': {value} is" in refused("--port", "0", option, value)


def test_a_short_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("short\n")
    assert "the token must be 16 or more" in refused("--token-file", str(file))
    assert "cannot read or write" in refused("--token-file", str(tmp_path / "none"))
