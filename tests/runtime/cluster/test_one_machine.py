"""This machine alone, without a cluster, in processes of their own; and S3, against moto's server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.cluster.conftest import contents, digests, make_pictures

from msan_runtime.cluster.stores import Store
from msan_runtime.journal import JOURNAL_NAME

pytest.importorskip("ray")

ROOT = Path(__file__).parents[3]
MSAN = "import msan_runtime.cli as cli; cli.entry_points = lambda **_: (); cli.main()"
RAY = ("--ray", "local", "--ray-workers", "1:2", "--ray-cpus", "1")


def deblur(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``msan deblur`` in a process of its own."""
    command = [sys.executable, "-c", MSAN, "deblur", *map(str, arguments), "--backend", "ort-cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_results_are_those_of_the_plain_run_and_ray_says_nothing(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name)
    plain = deblur(album, "-o", tmp_path / "plain")
    spread = deblur(album, "-o", tmp_path / "spread", *RAY, HOME=str(tmp_path / "home"))
    assert not list((tmp_path / "home").rglob("auth_token"))
    assert (plain.returncode, spread.returncode) == (1, 1)
    assert spread.stdout == f"10 of 11 pictures deblurred to {tmp_path / 'spread'}\n"
    assert digests(contents(tmp_path / "spread")) == digests(contents(tmp_path / "plain"))
    told = [line for line in spread.stderr.splitlines() if not line.startswith("deblurring on Ray, local")]
    assert told == [
        f"note: {socket.gethostname()}: runs on ort-cpu",
        f"error: {album / 'day' / 'bad.jpg'} is not a JPEG, PNG, WebP or TIFF picture",
    ]


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_pictures(source, [f"{number:02}.png" for number in range(30)], (160, 200))
    command = [sys.executable, "-c", MSAN, "deblur", source, "-o", out, "--backend", "ort-cpu", *RAY]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(contents(out)) < 6:
            time.sleep(0.02)
        process.kill()
    finished = deblur(source, "-o", out, *RAY)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"30 of 30 pictures deblurred to {out} (")
    assert set(contents(out)) == {f"{number:02}.png" for number in range(30)}
    rows = [json.loads(row) for row in (out / JOURNAL_NAME).read_bytes().splitlines()]
    assert sorted(row["target"] for row in rows if "target" in row) == sorted(contents(out))


def test_a_run_that_is_terminated_ends_in_order(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    make_pictures(source, [f"{number:02}.png" for number in range(30)], (160, 200))
    command = [sys.executable, "-c", MSAN, "deblur", source, "-o", out, "--backend", "ort-cpu", *RAY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(contents(out)) < 3:
            time.sleep(0.02)
        process.terminate()
        told, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert f"of 30 pictures deblurred to {out}" in told
    assert "Traceback" not in errors
    assert "@ 0x" not in errors
    assert {name.removeprefix(".msan-") for name in contents(out)} == set(contents(out))


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket ``pictures``, and the environment of those who use it."""

    store: Store
    environment: dict[str, str]

    def contents(self, folder: str) -> dict[str, bytes]:
        """Every object below a folder but those of the journal."""
        files = (file.path for file in self.store.files(folder) if "/.msan-journal/" not in file.path)
        return {path.removeprefix(f"{folder}/"): self.store.read(path) for path in files}

    def journal(self, folder: str) -> list[dict[str, Any]]:
        parts = self.store.files(f"{folder}/.msan-journal")
        return [json.loads(row) for part in parts for row in self.store.read(part.path).splitlines()]


@pytest.fixture
def bucket() -> Generator[Bucket]:
    """A bucket of moto's S3 server, which make's target ``moto`` installs apart: it needs an older dateutil."""
    program = shutil.which("moto_server", path=os.pathsep.join((str(ROOT / "build" / "moto" / "bin"), os.defpath)))
    if program is None:
        assert "CI" not in os.environ, "no moto_server: make moto"
        pytest.skip("no moto_server: make moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [program, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(address)
            yield _bucket(address)
        finally:
            server.terminate()


def _wait_for(address: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/moto-api/"):
            return
        time.sleep(0.1)
    raise AssertionError(f"moto's server does not answer at {address}")


def _bucket(address: str) -> Bucket:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem

    system = S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="eu-central-1",
        endpoint_override=address,
        allow_bucket_creation=True,
    )
    system.create_dir("pictures")
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": address,
    }
    return Bucket(store=Store("s3", ArrowFSWrapper(system)), environment=environment)


def test_s3_to_s3(bucket: Bucket, album: Path, tmp_path: Path) -> None:
    assert deblur(album, "-o", tmp_path / "plain", "--compare").returncode == 1
    for name, data in contents(album).items():
        bucket.store.write(f"pictures/in/{name}", data)
    command = ("s3://pictures/in", "-o", "s3://pictures/in/sharp", "--compare", *RAY)

    first = deblur(*command, **bucket.environment)
    assert first.stdout == "10 of 11 pictures deblurred to s3://pictures/in/sharp\n", first.stderr
    assert first.returncode == 1
    assert digests(bucket.contents("pictures/in/sharp")) == digests(contents(tmp_path / "plain"))
    bad = "s3://pictures/in/day/bad.jpg"
    assert first.stderr.count(f"error: {bad} is not a JPEG, PNG, WebP or TIFF picture") == 1
    header, *rows = bucket.journal("pictures/in/sharp")
    assert header["model"] == "msan-s"
    assert sorted(row["source"] for row in rows) == sorted(f"s3://pictures/in/{name}" for name in contents(album))

    bucket.store.write("pictures/in/new.png", (album / "0.png").read_bytes())
    second = deblur(*command, **bucket.environment)
    assert second.stdout == "11 of 12 pictures deblurred to s3://pictures/in/sharp (10 of them before)\n", second.stderr
    assert {row["source"] for row in bucket.journal("pictures/in/sharp")[12:]} == {"s3://pictures/in/new.png", bad}

    other = deblur("s3://pictures/in", "-o", "s3://pictures/in/sharp", *RAY, **bucket.environment)
    assert other.returncode == 2
    assert "error: s3://pictures/in/sharp holds results with other settings: --compare on, now off" in other.stderr


def test_s3_to_a_local_folder(bucket: Bucket, album: Path, tmp_path: Path) -> None:
    bucket.store.write("pictures/in/0.png", (album / "0.png").read_bytes())
    finished = deblur("s3://pictures/in/0.png", "-o", tmp_path / "sharp", *RAY, **bucket.environment)
    assert finished.stdout == f"1 of 1 pictures deblurred to {tmp_path / 'sharp'}\n", finished.stderr
    assert deblur(album / "0.png", "-o", tmp_path / "plain").returncode == 0
    assert digests(contents(tmp_path / "sharp")) == digests(contents(tmp_path / "plain"))


def test_a_bucket_that_is_not_there_is_said_so(bucket: Bucket) -> None:
    finished = deblur("s3://nothing/in", "-o", "s3://nothing/out", *RAY, **bucket.environment)
    assert finished.returncode == 2
    assert "error: no file or folder s3://nothing/in" in finished.stderr
