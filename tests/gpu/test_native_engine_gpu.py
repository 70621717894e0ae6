"""The shipped network as a native engine of TensorRT-RTX on a GPU: tiles on lanes that overlap, memory, batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gpu.device import first_working, rtx_engine
from tests.gpu.driver import MIB, Driver
from tests.gpu.pictures import LEAST_DB, assert_like_single, blurred_picture, psnr_db, tiles_of

from msan_runtime import Deblurrer
from msan_runtime.backends import rtx
from msan_runtime.backends._trt import TrtBackend
from msan_runtime.backends.cuda import compute_capability
from msan_runtime.bundle import open_bundle
from msan_runtime.errors import OutOfMemoryError
from msan_runtime.manifest import Profile

pytestmark = pytest.mark.gpu

LEFT_BYTES = 128 * MIB
"""Enough for tiles of 64×64, and about one of the many layers of a tile of 1920×1920."""


def open_shipped(**options: Any) -> TrtBackend:
    """The shipped engine, or one like it that was built for this GPU."""
    engine, entry = rtx_engine()
    return rtx.open_rtx(engine, entry, **options)


@pytest.fixture(scope="module", autouse=True)
def needs_an_engine() -> None:
    found = first_working(("rtx",))
    if not found.name:
        pytest.skip("; ".join(found.reasons))


@pytest.fixture(scope="module")
def native() -> Iterator[Deblurrer]:
    with Deblurrer.load(backend="rtx") as deblurrer:
        yield deblurrer


def test_a_batch_gives_what_single_tiles_give(native: Deblurrer) -> None:
    height, width = native.backend.limits.smallest
    tiles = np.stack([blurred_picture(height, width), 255 - blurred_picture(height, width)] * 3)
    together = native.backend.infer(tiles)
    alone = np.concatenate([native.backend.infer(tile[None]) for tile in tiles])
    assert psnr_db(together, alone) >= LEAST_DB


def test_repeating_a_picture_repeats_the_result(native: Deblurrer) -> None:
    picture = blurred_picture(256, 256)
    first = native.deblur(picture)
    for _ in range(5):
        assert psnr_db(native.deblur(picture), first) >= LEAST_DB


def test_the_largest_tile_has_no_holes(native: Deblurrer) -> None:
    """Beyond some 65,504 keys fused attention gives NaN, which becomes black: the limits stay under it."""
    limits = native.backend.limits
    height, width = limits.largest or (2048, 2040)
    height = min(height, limits.area_px // width // 8 * 8)
    tile = blurred_picture(height, width)[None]
    assert psnr_db(native.backend.infer(tile), tile) >= 15.0


# Tiles on lanes that overlap


@pytest.mark.parametrize(
    "sizes", [[(256, 384)] * 12, [(256, 256), (256, 256), (512, 640), (64, 64), (256, 256)] * 3], ids=["equal", "mixed"]
)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_many_tiles_give_what_single_tiles_give(sizes: list[tuple[int, int]], cuda_graphs: bool) -> None:
    tiles = tiles_of(sizes)
    with open_shipped(cuda_graphs=cuda_graphs) as backend:
        singles = [backend.infer(tile) for tile in tiles]
        for _ in range(3):
            assert_like_single(backend.infer_many(tiles), singles)


def test_closing_a_stream_early_leaves_the_backend_usable() -> None:
    tiles = tiles_of([(256, 384)] * 8)
    with open_shipped() as backend:
        single = backend.infer(tiles[0])
        for used in range(4):
            results = backend.infer_many(tiles)
            for _ in range(used):
                next(results)
            results.close()
            assert psnr_db(backend.infer(tiles[0]), single) >= LEAST_DB


def test_tiles_that_share_a_run_give_what_single_tiles_give() -> None:
    pytest.importorskip("onnx", reason="onnx is not installed: msan_export.engine needs it")
    from msan_export.engine import EngineSpec, build_engine, engine_entry
    from msan_runtime.targets import capabilities_named

    bundle = open_bundle()
    graph = bundle.graph(prefer=("fp16",))
    assert graph is not None
    major, minor = compute_capability().split(".")
    profile = Profile(min=(1, 64, 64), opt=(4, 512, 512), max=(4, 512, 512))
    spec = EngineSpec(profile=profile, capabilities=capabilities_named(f"sm_{major}{minor}"))
    engine = build_engine(bundle.read(graph.path), spec, "fp16")
    tiles = tiles_of([(128, 192)] * 11)
    with rtx.open_rtx(engine.data, engine_entry(engine, "batch.engine", graph.path)) as backend:
        singles = [backend.infer(tile) for tile in tiles]
        for _ in range(3):
            assert_like_single(backend.infer_many(tiles), singles)


def test_device_time_is_within_wall_time(record_property: Callable[[str, object], None]) -> None:
    """The share of the time that the device was idle is recorded, not judged."""
    tiles = tiles_of([(720, 1280)] * 30)
    with open_shipped() as backend:
        list(backend.infer_many(tiles))
        backend.reset_busy()
        start = time.perf_counter()
        list(backend.infer_many(tiles))
        wall_ms = (time.perf_counter() - start) * 1000
        busy_ms = backend.busy_ms
    assert busy_ms is not None
    # CUDA's events have a resolution of about half a microsecond.
    assert 0 < busy_ms <= wall_ms + 0.01 * len(tiles)
    record_property("device_idle_share", 1 - busy_ms / wall_ms)


def test_compiled_kernels_are_taken_from_the_file(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.bin"
    (tile,) = tiles_of([(256, 384)])
    with open_shipped(jit_cache=kernels) as backend:
        first = backend.infer(tile)
    assert kernels.stat().st_size > 0
    with open_shipped(jit_cache=kernels) as backend:
        assert psnr_db(backend.infer(tile), first) >= LEAST_DB


# Device memory


def test_memory_grows_with_the_tiles_and_is_given_back(driver: Driver) -> None:
    small, large = tiles_of([(64, 64), (1920, 1920)])
    with open_shipped() as backend:
        before = driver.free_bytes()
        backend.infer(small)
        with_small = driver.free_bytes()
        backend.infer(large)
        with_large = driver.free_bytes()
    assert before - with_small < with_small - with_large
    assert driver.free_bytes() > with_large


def test_smaller_tiles_run_after_the_device_ran_out(driver: Driver) -> None:
    small, large = tiles_of([(64, 64), (1920, 1920)])
    with open_shipped() as backend:
        single = backend.infer(small)
        with driver.most_memory_taken(left_bytes=LEFT_BYTES):
            with pytest.raises(OutOfMemoryError):
                backend.infer(large)
            assert psnr_db(backend.infer(small), single) >= LEAST_DB
        assert backend.infer(large).shape == large.shape
        assert psnr_db(backend.infer(small), single) >= LEAST_DB
