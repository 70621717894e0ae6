"""Streams of pictures, and what happens when the device's memory does not suffice."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from msan_runtime.backends.base import Backend, TileLimits
from msan_runtime.backends.ort import OrtBackend
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, ContractError, OutOfMemoryError
from msan_runtime.tiling import TiledRunner

MakeDeblurrer = Callable[..., Deblurrer]
Noise = Callable[..., PictureArray]


class SmallBackend(Backend):
    """Inverts tiles up to ``room_px``; over that, its memory runs out. Takes a batch ahead, as a GPU does."""

    name = "small"
    device = "NumPy"

    def __init__(self, room_px: int) -> None:
        self.limits = TileLimits(area_px=512 * 512)
        self.room_px = room_px
        self.areas: list[int] = []

    def infer(self, tiles: PictureArray) -> PictureArray:
        area = tiles.shape[1] * tiles.shape[2]
        self.areas.append(area)
        if area > self.room_px:
            raise OutOfMemoryError(f"no room for {area} px")
        return 255 - tiles

    def infer_many(self, tiles: Iterable[PictureArray]) -> Iterator[PictureArray]:
        earlier: PictureArray | None = None
        for batch in tiles:
            if earlier is not None:
                yield self.infer(earlier)
            earlier = batch
        if earlier is not None:
            yield self.infer(earlier)


def test_a_stream_gives_pictures_of_many_sizes_and_types_back_in_order(
    make_deblurrer: MakeDeblurrer, noise: Noise
) -> None:
    shapes = [(8, 8), (8, 8), (30, 50), (8, 8), (200, 100), (200, 100), (1, 1)]
    pictures = [noise(*shape, 3) for shape in shapes]
    deblurrer = make_deblurrer(lambda tiles: 255 - tiles, TileLimits(area_px=4096))
    found = list(deblurrer.stream(iter(pictures)))
    assert len(found) == len(pictures)
    for result, picture in zip(found, pictures, strict=True):
        assert np.array_equal(result, 255 - picture)


def test_types_may_change_within_a_stream(deep_bundle_folder: Path, noise: Noise) -> None:
    plain = noise(20, 30, 3)
    deep = plain.astype(np.uint16) * 257
    with Deblurrer.load(deep_bundle_folder, "ort-cpu") as deblurrer:
        found = list(deblurrer.stream([plain, deep, plain]))
    assert [result.dtype for result in found] == [np.uint8, np.uint16, np.uint8]
    assert np.array_equal(found[1], 65535 - deep)


def test_a_stream_is_lazy(make_deblurrer: MakeDeblurrer, noise: Noise) -> None:
    taken: list[int] = []

    def endless() -> Iterator[PictureArray]:
        while True:
            taken.append(len(taken))
            yield noise(8, 8, 3)

    stream = make_deblurrer(lambda tiles: tiles, TileLimits(area_px=4096)).stream(endless())
    assert not taken
    for count in range(1, 5):
        next(stream)
        assert len(taken) <= count + 2


def test_an_empty_stream_gives_nothing(make_deblurrer: MakeDeblurrer) -> None:
    assert not list(make_deblurrer(lambda tiles: tiles, TileLimits(area_px=4096)).stream([]))


def test_what_is_no_picture_stops_a_stream_after_those_before_it(make_deblurrer: MakeDeblurrer, noise: Noise) -> None:
    stream = make_deblurrer(lambda tiles: tiles, TileLimits(area_px=4096)).stream([noise(8, 8, 3), noise(8, 8)])
    next(stream)
    with pytest.raises(ContractError, match=r"\(8, 8\)"):
        next(stream)


def test_a_stream_left_early_leaves_the_deblurrer_usable(make_deblurrer: MakeDeblurrer, noise: Noise) -> None:
    deblurrer = make_deblurrer(lambda tiles: 255 - tiles, TileLimits(area_px=4096))
    stream = deblurrer.stream(noise(100, 90, 3) for _ in range(9))
    next(stream)
    picture = noise(100, 90, 3)
    assert np.array_equal(deblurrer.deblur(picture), 255 - picture)


@pytest.mark.parametrize("room_px", [512 * 512, 200 * 200, 90 * 90])
def test_out_of_memory_halves_the_tiles_and_loses_no_picture(
    noise: Noise, caplog: pytest.LogCaptureFixture, room_px: int
) -> None:
    backend = SmallBackend(room_px)
    runner = TiledRunner(backend)
    pictures = [noise(500, 400, 3) for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        found = list(runner.run(iter(pictures)))
    assert len(found) == 3
    assert all(np.array_equal(result, 255 - picture) for result, picture in zip(found, pictures, strict=True))
    failed = [area for area in backend.areas if area > room_px]
    assert len(caplog.messages) == len(failed)
    assert all(after <= before / 2 for before, after in itertools.pairwise(failed))
    assert all(
        "ran out of memory on tiles of" in message and "half that area" in message for message in caplog.messages
    )
    assert runner.limits.area_px == (512 * 512 if room_px == 512 * 512 else failed[-1] // 2)


def test_the_smaller_tiles_are_kept_for_later_pictures(noise: Noise) -> None:
    backend = SmallBackend(200 * 200)
    runner = TiledRunner(backend)
    list(runner.run([noise(500, 400, 3)]))
    backend.areas.clear()
    list(runner.run([noise(300, 400, 3)]))
    assert max(backend.areas) <= 200 * 200


def test_memory_that_runs_out_in_the_middle_of_a_stream_loses_nothing(noise: Noise) -> None:
    backend = SmallBackend(512 * 512)
    pictures = [noise(300, 200, 3) for _ in range(5)]
    found: list[PictureArray] = []
    for result in TiledRunner(backend).run(iter(pictures)):
        found.append(result)
        backend.room_px = 150 * 150
    assert all(np.array_equal(result, 255 - picture) for result, picture in zip(found, pictures, strict=True))


def test_a_fixed_size_that_does_not_fit_is_given_up(noise: Noise) -> None:
    backend = SmallBackend(150 * 150)
    picture = noise(500, 400, 3)
    (found,) = TiledRunner(backend, tile=(256, 256), overlap_px=8).run([picture])
    assert np.array_equal(found, 255 - picture)
    assert backend.areas[0] == 256 * 256


def test_when_not_even_small_tiles_fit_the_error_says_what_to_do(noise: Noise) -> None:
    backend = SmallBackend(0)
    with pytest.raises(OutOfMemoryError, match=r"too little memory even for tiles .* choose another backend"):
        list(TiledRunner(backend).run([noise(500, 400, 3)]))
    assert min(backend.areas) >= 64 * 64 / 2


def test_out_of_memory_of_the_caller_is_the_callers(noise: Noise, caplog: pytest.LogCaptureFixture) -> None:
    def source() -> Iterator[PictureArray]:
        yield noise(8, 8, 3)
        raise OutOfMemoryError("of another device")

    found: list[PictureArray] = []
    with pytest.raises(OutOfMemoryError, match=r"^of another device$"):
        found.extend(TiledRunner(SmallBackend(512 * 512)).run(source()))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (
            "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1073741824",
            OutOfMemoryError,
        ),
        ("Non-zero status code returned while running Conv node. std::bad_alloc", OutOfMemoryError),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemoryError),
        ("CUBLAS_STATUS_ALLOC_FAILED", OutOfMemoryError),
        ("CUDNN failure: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", OutOfMemoryError),
        ("Available memory of 1048576 is smaller than requested bytes of 268435456", OutOfMemoryError),
        ("CUDA_ERROR_OUT_OF_MEMORY", OutOfMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", BackendError),
        ("INVALID_ARGUMENT : Got invalid dimensions", BackendError),
    ],
)
def test_onnx_runtimes_words_for_lacking_memory_are_understood(words: str, kind: type[BackendError]) -> None:
    class Session:
        def run(self, *_: object) -> None:
            raise RuntimeError(words)

    backend = OrtBackend(Session(), "ort-cpu", "CPU", limits=TileLimits(area_px=64))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BackendError) as caught:
        backend.infer(np.zeros((1, 8, 8, 3), np.uint8))
    assert type(caught.value) is kind


LITTLE_MEMORY = """
import logging, resource, sys
import numpy as np
from msan_runtime import Deblurrer
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
deblurrer = Deblurrer.load("msan-s", "ort-cpu", memory_bytes=4 * 2**30)
deblurrer.deblur(np.zeros((64, 64, 3), np.uint8))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 160 * 2**20, resource.RLIM_INFINITY))
picture = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
print(deblurrer.deblur(picture).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_a_real_lack_of_memory_ends_in_a_whole_picture() -> None:
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ran out of memory on tiles of 448×448 px" in done.stdout
    assert "(448, 448, 3)" in done.stdout
