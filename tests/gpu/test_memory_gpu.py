"""Memory of the GPU: accesses under compute-sanitizer, ten thousand runs, and running out of it."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.gpu.device import ran
from tests.gpu.driver import MIB, Driver
from tests.gpu.pictures import LEAST_DB, assert_alike, blurred_picture, psnr_db, tiles_of

from msan_runtime import Deblurrer
from msan_runtime.backends.base import Backend
from msan_runtime.contract import PictureArray

pytestmark = pytest.mark.gpu

FIRST_RUNS = 1_000
ALL_RUNS = 10_000

SETTLING_SECONDS = 20.0
"""TensorRT-RTX compiles a size's own kernels beside the first runs, and loads them into the GPU's memory."""

DEVICE_GROWTH_BYTES = 4 * MIB
HOST_GROWTH_BYTES = 16 * MIB
"""0.5 and 1.9 kB a run: under what a picture of 64×64 takes."""

LEFT_BYTES = 128 * MIB
"""Enough for tiles of 64×64, and about one of the many layers of a tile of 1600×1600."""

SANITIZER = "compute-sanitizer"
SANITIZED = """
import sys
from msan_runtime import Deblurrer
from tests.gpu.pictures import blurred_picture, tiles_of
with Deblurrer.load(backend=sys.argv[1], tile=(128, 192)) as deblurrer:
    sizes = [(64, 64), (64, 64), (128, 96), (64, 128), (192, 256), (8, 8), (64, 64)] * 2
    for tile, result in zip(tiles_of(sizes), deblurrer.backend.infer_many(tiles_of(sizes)), strict=True):
        assert tile.shape == result.shape
    for size in ((100, 130), (250, 371), (64, 64)):
        assert deblurrer.deblur(blurred_picture(*size)).shape == (*size, 3)
print("all done")
"""


def sanitizer() -> Path | None:
    """CUDA's tool, on the path or where CUDA puts it."""
    on_path = shutil.which(SANITIZER)
    if on_path is not None:
        return Path(on_path)
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    roots += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    found = (root / folder / SANITIZER for root in roots for folder in ("bin", "compute-sanitizer"))
    return next((path for path in found if path.is_file()), None)


def test_no_access_outside_a_buffer(device_name: str) -> None:
    """memcheck alone, and of it accesses alone: msan has no kernels, whose races and uninitialised reads the other
    tools look for, and calls of CUDA that fail are errors of its own; libraries make some on purpose.
    """
    tool = sanitizer()
    if tool is None:
        pytest.skip(f"{SANITIZER} is neither on PATH nor in CUDA_HOME or /usr/local/cuda*")
    options = ("--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "99", "--print-limit", "5")
    done = ran((str(tool), *options, sys.executable, "-c", SANITIZED), device_name, seconds=540)
    told = (done.stdout + done.stderr)[-4000:]
    assert done.returncode == 0, told
    assert "all done" in done.stdout, told
    assert "ERROR SUMMARY: 0 errors" in done.stdout + done.stderr, told


@pytest.mark.parametrize("sizes", [[(64, 64)], [(64, 64), (96, 64), (64, 128)]], ids=["one size", "three sizes"])
def test_memory_does_not_grow_over_ten_thousand_runs(
    device_name: str, driver: Driver, sizes: list[tuple[int, int]], record_property: Callable[[str, object], None]
) -> None:
    tiles = tiles_of(sizes)
    with Deblurrer.load(backend=device_name) as deblurrer:
        backend = deblurrer.backend
        single = backend.infer(tiles[0])
        start = time.monotonic()
        run(backend, tiles, FIRST_RUNS)
        while time.monotonic() < start + SETTLING_SECONDS:
            run(backend, tiles, FIRST_RUNS // 10)
        free_bytes, held_bytes = driver.free_bytes(), rss_bytes()
        run(backend, tiles, ALL_RUNS - FIRST_RUNS)
        grown_bytes = free_bytes - driver.free_bytes()
        record_property("growth on the device in bytes", grown_bytes)
        assert grown_bytes <= DEVICE_GROWTH_BYTES
        if held_bytes is not None:
            grown_bytes = (rss_bytes() or 0) - held_bytes
            record_property("growth on the host in bytes", grown_bytes)
            assert grown_bytes <= HOST_GROWTH_BYTES
        assert psnr_db(backend.infer(tiles[0]), single) >= LEAST_DB


def run(backend: Backend, tiles: list[PictureArray], runs: int) -> None:
    """Deblur the tiles in turn and let go of the results."""
    for _ in backend.infer_many(itertools.islice(itertools.cycle(tiles), runs)):
        pass


def rss_bytes() -> int | None:
    """The main memory that this process holds now; ``None`` where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def test_memory_is_given_back_on_closing(device_name: str, driver: Driver) -> None:
    """Opened and closed again and again: what stays is the library's own, and does not add up."""

    def opened_and_closed() -> int:
        with Deblurrer.load(backend=device_name) as deblurrer:
            deblurrer.deblur(blurred_picture(256, 384))
        return driver.free_bytes()

    first = [opened_and_closed() for _ in range(3)][-1]
    last = [opened_and_closed() for _ in range(10)][-1]
    assert first - last <= DEVICE_GROWTH_BYTES


def test_a_picture_is_done_in_smaller_tiles_where_the_device_runs_out(
    device_name: str, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    picture, small = blurred_picture(1600, 1600), blurred_picture(64, 64)
    with Deblurrer.load(backend=device_name, memory_bytes=2**32) as deblurrer:
        single = deblurrer.deblur(small)
        with driver.most_memory_taken(left_bytes=LEFT_BYTES):
            given = deblurrer.deblur(picture)
        assert "ran out of memory on tiles of" in caplog.text
        assert given.shape == picture.shape
        # Tiles stay small, so the picture is the same where the memory suffices for them.
        assert_alike(deblurrer.deblur(picture), given)
        assert_alike(deblurrer.deblur(small), single)
