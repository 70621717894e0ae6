"""``msan cache``: what is listed, cleared and built ahead of time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from msan_runtime.store import keep, kept_in

MSAN = [sys.executable, "-c", "from msan_runtime.cli import main; main()"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache" / "msan"


def msan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MSAN, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_an_empty_cache_says_so() -> None:
    listed = msan("cache", "list")
    assert listed.returncode == 0
    assert "It is empty." in listed.stdout


def test_what_is_kept_is_listed_and_cleared_by_kind(cache: Path) -> None:
    keep(cache / "engines" / "one.engine", bytes(200_000), {"network": "prüfling", "for": "8.9"})
    keep(cache / "kernels" / "two.kernels", bytes(300), {})
    listed = msan("cache", "list").stdout
    assert "engines (engines built on this machine): 1, 0.2 MB" in listed
    assert "network prüfling, for 8.9" in listed
    assert msan("cache", "clear", "engines").returncode == 0
    assert not (cache / "engines").exists()
    assert len(kept_in(cache / "kernels")) == 1
    assert msan("cache", "clear").returncode == 0
    assert "It is empty." in msan("cache", "list").stdout


def test_only_kinds_that_there_are_are_cleared(cache: Path) -> None:
    keep(cache / "engines" / "one.engine", b"", {})
    refused = msan("cache", "clear", "engine")
    assert refused.returncode == 2
    assert "There are: engines, kernels" in refused.stderr
    assert (cache / "engines" / "one.engine").exists()


def test_engines_are_built_ahead_once(cache: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    fits = msan("cache", "prebuild", "--gpu", "rtx40")
    assert "own engine fits" in fits.stdout
    command = [*MSAN, "cache", "prebuild", "--gpu", "t4"]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert sum("building an engine for sm_75" in error for _, error in said) == 1
    assert sorted("sm_75: built" in out for out, _ in said) == [False, False, True]
    assert sum("sm_75: was there" in out for out, _ in said) == 2
    (engine,) = kept_in(cache / "engines")
    assert engine.about["for"] == "7.5"
    engine.path.write_bytes(b"garbage")
    again = msan("cache", "prebuild", "--gpu", "t4")
    assert again.returncode == 0
    assert "damaged and was thrown away" in again.stderr
    assert "building an engine for sm_75" in again.stderr
    assert "sm_75: built" in again.stdout


def test_prebuilding_without_a_gpu_says_what_to_name() -> None:
    pytest.importorskip("tensorrt_rtx")
    from msan_runtime.backends.cuda import gpu_problem

    if gpu_problem() is None:
        return  # this machine has one
    refused = msan("cache", "prebuild")
    assert refused.returncode == 2
    assert "Name one, for example --gpu rtx4090" in refused.stderr
