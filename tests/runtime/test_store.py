"""The store of things that can be made again: nothing damaged comes out of it, and one of many processes builds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msan_runtime.engines.kept import EngineKey, engine_path, engines_folder, kept_or_built
from msan_runtime.manifest import Profile
from msan_runtime.store import keep, kept_in, recall, trim

KEY = EngineKey(
    graph_sha256="a" * 64,
    flavour="tensorrt-rtx",
    flavour_version="1.7.1.116",
    device="8.9",
    profile=Profile(min=(1, 8, 8), opt=(1, 64, 64), max=(1, 64, 64)),
)

BUILDER = """
import logging, sys, time
from pathlib import Path
from msan_runtime.engines.kept import EngineKey, kept_or_built
from msan_runtime.manifest import Profile
logging.basicConfig(stream=sys.stderr, format="%(message)s")
log, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build():
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(seconds)
    return b"engine" * 1000
key = EngineKey(graph_sha256="a" * 64, flavour="tensorrt-rtx", flavour_version="1.7.1.116", device="8.9",
                profile=Profile(min=(1, 8, 8), opt=(1, 64, 64), max=(1, 64, 64)))
print(len(kept_or_built(key, {"network": "n"}, build)))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def builder(log: Path, seconds: float, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + BUILDER, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@given(data=st.binary(max_size=300), about=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3))
def test_what_was_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, data: bytes, about: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "store" / "thing"
    assert keep(path, data, about)
    assert recall(path) == data
    (kept,) = kept_in(path.parent)
    assert dict(kept.about) == about


@given(data=st.binary(min_size=1, max_size=60), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_changed_bit_of_the_data_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: int, bit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "store" / "bits"
    assert keep(path, data, {})
    content = bytearray(path.read_bytes())
    content[len(content) - 1 - place % len(data)] ^= 1 << bit
    path.write_bytes(content)
    assert recall(path) is None
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"garbage", b"{}\ndata", b'{"format": 1}\n', b"[" * 100_000, b"\0" * 999]
)
def test_garbage_is_thrown_away_with_a_word(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    assert recall(path) is None
    assert not path.exists()
    assert "damaged and was thrown away" in caplog.text
    assert kept_in(tmp_path) == []


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        keep(tmp_path / name, bytes(1000), {})
        then = time.time() - 100 * (age + 1)
        os.utime(tmp_path / name, (then, then))
    recall(tmp_path / "d")
    size_bytes = (tmp_path / "a").stat().st_size
    removed = trim(tmp_path, 2 * size_bytes)
    assert {kept.path.name for kept in removed} == {"b", "c"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "d"}


@pytest.mark.usefixtures("cache")
def test_ten_processes_at_once_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [builder(log, 0.5) for _ in range(10)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in results] == ["6000"] * 10, results
    assert log.read_text() == "built\n"
    assert len(kept_in(engines_folder())) == 1


@pytest.mark.usefixtures("cache")
def test_a_killed_builder_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = builder(log, 60)
    while not log.exists():
        time.sleep(0.02)
    waiting = builder(log, 0)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    out, error = waiting.communicate(timeout=60)
    assert out.strip() == "6000", error
    assert log.read_text() == "built\n" * 2
    names = {path.name for path in engines_folder().iterdir()}
    assert names == {engine_path(KEY).name, engine_path(KEY).with_suffix(".lock").name}


@pytest.mark.usefixtures("cache")
def test_temporary_files_of_killed_writers_are_removed() -> None:
    engines_folder().mkdir(parents=True)
    left = engines_folder() / f".msan-{engine_path(KEY).name}.{'0' * 16}.tmp"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    kept_or_built(KEY, {}, lambda: b"engine")
    assert not left.exists()


def test_a_cache_that_cannot_be_written_costs_a_build_and_is_said(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_bytes(b"a file where the folder should be")
    for _ in range(2):
        assert kept_or_built(KEY, {}, lambda: b"engine") == b"engine"
    assert caplog.text.count("was not kept for the next time") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files, which Windows lacks")
@pytest.mark.usefixtures("cache")
def test_a_full_disk_costs_a_build_and_is_said(tmp_path: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    out, error = builder(tmp_path / "log", 0, full).communicate(timeout=60)
    assert out.strip() == "6000"
    assert "was not kept for the next time" in error
    assert [path.suffix for path in engines_folder().iterdir()] == [".lock"]


def test_every_part_of_the_key_counts() -> None:
    import dataclasses

    profile = Profile(min=(1, 8, 8), opt=(1, 64, 64), max=(1, 64, 128))
    changes = {"graph_sha256": "b" * 64, "flavour": "tensorrt", "flavour_version": "1.8.0.1", "device": "8.6"}
    keys = [KEY, *(dataclasses.replace(KEY, **{name: value}) for name, value in changes.items())]
    keys.append(dataclasses.replace(KEY, profile=profile))
    assert len({key.digest for key in keys}) == 6
