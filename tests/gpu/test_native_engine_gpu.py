"""The shipped bundle's native engine on a GPU, against ONNX Runtime on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msan_runtime import Deblurrer
from msan_runtime.backends import rtx
from msan_runtime.backends._trt import TrtBackend
from msan_runtime.backends.cuda import compute_capability, gpu_problem
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import PictureArray
from msan_runtime.errors import OutOfMemoryError
from msan_runtime.manifest import EngineEntry, Profile

pytestmark = pytest.mark.gpu

LEAST_DB = 50.0
"""Of two runs of one engine, too: a shape's first runs use general kernels, later ones its own."""

MIB = 2**20
LEFT_BYTES = 128 * MIB
"""Enough for tiles of 64×64, and about one of the many layers of a tile of 1920×1920."""


def shipped_entry() -> EngineEntry:
    entry = open_bundle().engine("tensorrt-rtx")
    assert entry is not None
    return entry


def open_shipped(**options: Any) -> TrtBackend:
    entry = shipped_entry()
    return rtx.open_rtx(open_bundle().read(entry.path), entry, **options)


@pytest.fixture(scope="module", autouse=True)
def needs_a_gpu() -> None:
    problem = gpu_problem() or rtx.unavailable()
    if problem is not None:
        pytest.skip(problem)
    built_for = shipped_entry().compute_capabilities
    if compute_capability() not in built_for:
        pytest.skip(f"the shipped engine is for compute capability {', '.join(built_for)}, not {compute_capability()}")


@pytest.fixture(scope="module")
def native() -> Iterator[Deblurrer]:
    with Deblurrer.load(backend="rtx") as deblurrer:
        yield deblurrer


@pytest.fixture(scope="module")
def reference() -> Iterator[Deblurrer]:
    with Deblurrer.load(backend="ort-cpu") as deblurrer:
        yield deblurrer


def blurred_picture(height: int, width: int) -> PictureArray:
    """Random blocks, smeared to the right: edges and flat parts, as in a photograph that moved."""
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    sharp = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return np.mean([np.roll(sharp, shift, axis=1) for shift in range(9)], axis=0).astype(np.uint8)


def psnr_db(one: PictureArray, other: PictureArray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


# Sizes that both backends take as one tile: attention is global, so other tiles mean another result.
@pytest.mark.parametrize(("height", "width"), [(256, 256), (250, 371), (480, 640)])
def test_native_engine_agrees_with_onnx_runtime(
    native: Deblurrer, reference: Deblurrer, height: int, width: int
) -> None:
    picture = blurred_picture(height, width)
    native_picture, reference_picture = native.deblur(picture), reference.deblur(picture)
    assert native_picture.shape == picture.shape
    assert psnr_db(native_picture, reference_picture) >= LEAST_DB


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


def tiles_of(sizes: Iterable[tuple[int, int]]) -> list[PictureArray]:
    """Tiles that all differ: one in the place of another is far under ``LEAST_DB``."""
    random = np.random.default_rng(3)
    return [random.permutation(blurred_picture(*size).reshape(-1, 3)).reshape(1, *size, 3) for size in sizes]


def assert_like_single(results: Iterable[PictureArray], singles: list[PictureArray]) -> None:
    for result, single in zip(results, singles, strict=True):
        assert psnr_db(result, single) >= LEAST_DB


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


def test_cuda_graphs_change_nothing() -> None:
    """Enough runs that each shape is captured and replayed, before and after its memory moved."""
    small, large = tiles_of([(256, 256), (720, 1280)])
    tiles = [small] * 5 + [large] * 5 + [small] * 5
    with open_shipped(cuda_graphs=False) as backend:
        singles = [backend.infer(tile) for tile in tiles]
    with open_shipped(cuda_graphs=True) as backend:
        assert_like_single([backend.infer(tile) for tile in tiles], singles)


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
    """The share of the time that the device was idle is reported, not judged: ``--junit-xml`` has it."""
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


def free_bytes() -> int:
    runtime: Any = import_module("cuda.bindings.runtime")
    status, free, _total = runtime.cudaMemGetInfo()
    assert int(status) == 0
    return int(free)


@contextmanager
def most_memory_taken(left_bytes: int) -> Generator[None]:
    """Take the device's memory until at most ``left_bytes`` are free."""
    runtime: Any = import_module("cuda.bindings.runtime")
    taken: list[int] = []
    try:
        while (spare := free_bytes() - left_bytes) > 0:
            status, address = runtime.cudaMalloc(min(max(spare, 2 * MIB), 512 * MIB))
            if int(status) != 0:
                break
            taken.append(address)
        yield
    finally:
        for address in taken:
            runtime.cudaFree(address)


def test_memory_grows_with_the_tiles_and_is_given_back() -> None:
    small, large = tiles_of([(64, 64), (1920, 1920)])
    with open_shipped() as backend:
        before = free_bytes()
        backend.infer(small)
        with_small = free_bytes()
        backend.infer(large)
        with_large = free_bytes()
    assert before - with_small < with_small - with_large
    assert free_bytes() > with_large


def test_smaller_tiles_run_after_the_device_ran_out() -> None:
    small, large = tiles_of([(64, 64), (1920, 1920)])
    with open_shipped() as backend:
        single = backend.infer(small)
        with most_memory_taken(left_bytes=LEFT_BYTES):
            with pytest.raises(OutOfMemoryError):
                backend.infer(large)
            assert psnr_db(backend.infer(small), single) >= LEAST_DB
        assert backend.infer(large).shape == large.shape
        assert psnr_db(backend.infer(small), single) >= LEAST_DB


def test_a_picture_is_done_in_smaller_tiles_when_the_device_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    picture = blurred_picture(1600, 1600)
    with Deblurrer.load(backend="rtx") as deblurrer:
        deblurrer.deblur(picture[:64, :64])
        with most_memory_taken(left_bytes=LEFT_BYTES):
            assert deblurrer.deblur(picture).shape == picture.shape
    assert "ran out of memory on tiles of" in caplog.text
