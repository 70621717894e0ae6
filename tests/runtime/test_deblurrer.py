"""Deblurrer: pictures of any size through tiles, and the choice of a backend."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import msan_runtime
from msan_runtime.backends.base import TileLimits, check_tiles
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, BundleError, ContractError, MsanError
from msan_runtime.manifest import describe_file, load_manifest, save_manifest
from msan_runtime.select import BACKENDS, open_float_backend

Network = Callable[[PictureArray], PictureArray]
MakeDeblurrer = Callable[..., Deblurrer]
Noise = Callable[..., PictureArray]

AREA_OF_PICTURE = 120_000


def identity(tiles: PictureArray) -> PictureArray:
    return tiles


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    long = draw(st.integers(1, 5000))
    short = draw(st.integers(1, max(1, min(5000, AREA_OF_PICTURE // long))))
    return (long, short) if draw(st.booleans()) else (short, long)


@st.composite
def small_limits(draw: st.DrawFn) -> TileLimits:
    """Limits that force tiling: areas from one block of 8×8 on."""
    eighths = st.integers(1, 6)
    smallest = (8 * draw(eighths), 8 * draw(eighths))
    largest = draw(st.none() | st.just((max(smallest[0], 64), max(smallest[1], 96))))
    area = smallest[0] * smallest[1] + draw(st.integers(0, 20_000))
    return TileLimits(smallest=smallest, largest=largest, area_px=area)


def random_picture(seed: int, size: tuple[int, int], dtype: str) -> PictureArray:
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return rng.random((*size, 3), np.float32)
    return rng.integers(0, np.iinfo(dtype).max + 1, (*size, 3), dtype)


# Blending sums rounded weights: float pictures come back within a few of the last bits.
TOLERANCE = {"uint8": 0, "uint16": 0, "float32": 1e-6}


@settings(deadline=None, max_examples=60)
@given(sizes(), small_limits(), st.sampled_from(sorted(TOLERANCE)), st.sampled_from([None, 0, 8, 24]), st.integers(0))
@example((1, 1), TileLimits(area_px=64), "uint8", None, 0)
@example((1, 4000), TileLimits(area_px=512), "uint16", None, 0)
@example((100, 9), TileLimits(smallest=(8, 32), largest=(16, 32), area_px=512), "float32", None, 0)
def test_an_identity_network_gives_the_picture_back(
    make_deblurrer: MakeDeblurrer,
    size: tuple[int, int],
    limits: TileLimits,
    dtype: str,
    overlap: int | None,
    seed: int,
) -> None:
    picture = random_picture(seed, size, dtype)
    io = "uint8" if dtype == "uint8" else "float32"
    found = make_deblurrer(identity, limits, io, overlap_px=overlap).deblur(picture)
    assert found.dtype == picture.dtype
    assert found.shape == picture.shape
    np.testing.assert_allclose(found.astype(np.float64), picture.astype(np.float64), atol=TOLERANCE[dtype], rtol=0)


@settings(deadline=None, max_examples=30)
@given(sizes(), small_limits(), st.integers(0, 65535))
def test_a_constant_deep_picture_stays_constant(
    make_deblurrer: MakeDeblurrer, size: tuple[int, int], limits: TileLimits, level: int
) -> None:
    deblurrer = make_deblurrer(identity, limits, "float32")
    assert (deblurrer.deblur(np.full((*size, 3), level, np.uint16)) == level).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 12), st.integers(2, 12), st.integers(0, 8))
def test_tiles_of_a_fixed_size_give_the_picture_back(
    make_deblurrer: MakeDeblurrer, height: int, width: int, rows: int, columns: int, overlap: int
) -> None:
    seen: set[tuple[int, ...]] = set()

    def network(tiles: PictureArray) -> PictureArray:
        seen.add(tiles.shape[1:3])
        return tiles

    limits = TileLimits(area_px=10_000)
    picture = random_picture(height * width, (height, width), "uint8")
    deblurrer = make_deblurrer(network, limits, tile=(8 * rows, 8 * columns), overlap_px=overlap)
    assert np.array_equal(deblurrer.deblur(picture), picture)
    assert seen == {(min(8 * rows, -(-height // 8) * 8), min(8 * columns, -(-width // 8) * 8))}


def test_a_fixed_size_is_rounded_up_to_8(make_deblurrer: MakeDeblurrer) -> None:
    seen: set[tuple[int, ...]] = set()

    def network(tiles: PictureArray) -> PictureArray:
        seen.add(tiles.shape)
        return tiles

    make_deblurrer(network, TileLimits(area_px=10_000), tile=(57, 60)).deblur(np.zeros((200, 200, 3), np.uint8))
    assert seen == {(1, 64, 64, 3)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": (128, 128)}, "over this backend's largest area, 10000 px"),
        ({"tile": (0, 64)}, "under this backend's smallest"),
        ({"tile": (64, 64), "overlap_px": 60}, "cannot overlap by 64"),
        ({"overlap_px": -1}, "overlap by -1"),
    ],
)
def test_tiles_that_cannot_be_are_refused_on_loading(
    make_deblurrer: MakeDeblurrer, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ContractError, match=words):
        make_deblurrer(identity, TileLimits(area_px=10_000), **options)


@settings(deadline=None, max_examples=30)
@given(sizes(), small_limits(), st.tuples(*[st.integers(0, 255)] * 3))
def test_a_constant_picture_stays_constant(
    make_deblurrer: MakeDeblurrer, size: tuple[int, int], limits: TileLimits, colour: tuple[int, int, int]
) -> None:
    picture = np.full((*size, 3), colour, np.uint8)
    assert (make_deblurrer(identity, limits).deblur(picture) == colour).all()


@settings(deadline=None, max_examples=30)
@given(sizes(), small_limits())
def test_the_network_sees_only_tiles_that_its_limits_allow(
    make_deblurrer: MakeDeblurrer, size: tuple[int, int], limits: TileLimits
) -> None:
    shapes: set[tuple[int, ...]] = set()

    def network(tiles: PictureArray) -> PictureArray:
        check_tiles(tiles, limits)
        assert tiles.dtype == np.uint8
        assert tiles.shape[1] * tiles.shape[2] <= limits.area_px
        shapes.add(tiles.shape)
        return tiles

    make_deblurrer(network, limits).deblur(np.zeros((*size, 3), np.uint8))
    assert len(shapes) == 1, "engines are fastest when the shape never changes"


def test_the_network_sees_each_pixel_at_the_same_phase_of_8(make_deblurrer: MakeDeblurrer) -> None:
    """A network that answers with each pixel's place in its 8×8 block gives the same for tiles as for the whole."""

    def phase(tiles: PictureArray) -> PictureArray:
        height, width = tiles.shape[1:3]
        places = np.add.outer(np.arange(height) % 8 * 8, np.arange(width) % 8)
        return np.broadcast_to(places[None, :, :, None], tiles.shape).astype(np.uint8)

    picture = np.zeros((203, 517, 3), np.uint8)
    whole = make_deblurrer(phase, TileLimits(area_px=2**20)).deblur(picture)
    tiled = make_deblurrer(phase, TileLimits(area_px=64 * 64)).deblur(picture)
    assert np.array_equal(whole, tiled)


def test_a_network_of_small_reach_gives_the_same_in_tiles_as_whole(make_deblurrer: MakeDeblurrer, noise: Noise) -> None:
    """Where a tile is cut, the network lacks its surroundings: there its answer must count little."""

    def mean_of_3_by_3(tiles: PictureArray) -> PictureArray:
        padded = np.pad(tiles.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        height, width = tiles.shape[1:3]
        shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return np.rint(np.mean(shifted, axis=0)).astype(np.uint8)

    picture = noise(300, 400, 3)
    whole = make_deblurrer(mean_of_3_by_3, TileLimits(area_px=2**20)).deblur(picture)
    tiled = make_deblurrer(mean_of_3_by_3, TileLimits(area_px=160 * 160)).deblur(picture)
    assert np.abs(whole.astype(int) - tiled.astype(int)).max() <= 2


@pytest.mark.parametrize("area", [512, 2**20])
def test_the_picture_is_not_changed_and_the_result_is_ones_own(
    make_deblurrer: MakeDeblurrer, noise: Noise, area: int
) -> None:
    picture = noise(16, 64, 3)
    before = picture.copy()
    deblurrer = make_deblurrer(identity, TileLimits(area_px=area))
    result = deblurrer.deblur(picture)
    result[:] = 0
    assert np.array_equal(picture, before)
    assert np.array_equal(deblurrer.deblur(picture), before)


@pytest.mark.parametrize("area", [512, 2**20])
@pytest.mark.parametrize("view", [np.flipud, lambda a: a[:, :, ::-1], lambda a: np.swapaxes(a, 0, 1)])
def test_views_of_arrays_are_pictures_too(
    make_deblurrer: MakeDeblurrer, noise: Noise, view: Callable[[PictureArray], PictureArray], area: int
) -> None:
    picture = view(noise(24, 40, 3))
    picture.flags.writeable = False
    contiguous: set[bool] = set()

    def network(tiles: PictureArray) -> PictureArray:
        contiguous.add(tiles.flags.c_contiguous)
        return tiles

    assert np.array_equal(make_deblurrer(network, TileLimits(area_px=area)).deblur(picture), picture)
    assert contiguous == {True}, "native backends copy the bytes as they lie"


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_what_is_no_picture_is_refused_before_the_network_runs(
    make_deblurrer: MakeDeblurrer, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ContractError, match="a picture must be uint8, uint16 or float32"):
        make_deblurrer(identity, TileLimits(area_px=512)).deblur(np.zeros(shape, np.uint8))


def test_a_failing_device_is_reported_and_not_a_wrong_picture(make_deblurrer: MakeDeblurrer) -> None:
    def fail(tiles: PictureArray) -> PictureArray:
        raise BackendError(f"out of memory at {tiles.shape}")

    with pytest.raises(BackendError, match="out of memory"):
        make_deblurrer(fail, TileLimits(area_px=512)).deblur(np.zeros((64, 64, 3), np.uint8))


def test_leaving_the_block_releases_the_backend(bundle_folder: Path, noise: Noise) -> None:
    with Deblurrer.load(bundle_folder, "ort-cpu") as deblurrer:
        deblurrer.deblur(noise(8, 8, 3))
    with pytest.raises(BackendError, match="ort-cpu backend was closed: load the bundle again"):
        deblurrer.deblur(noise(8, 8, 3))


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (8, 8, 3), (1, 4000, 3), (700, 650, 3)])
def test_the_graph_of_a_bundle_runs_on_pictures_of_any_size(
    bundle_folder: Path, noise: Noise, shape: tuple[int, ...]
) -> None:
    picture = noise(*shape)
    with msan_runtime.Deblurrer.load(str(bundle_folder), backend="ort-cpu") as deblurrer:
        assert np.array_equal(deblurrer.deblur(picture), 255 - picture)


def test_pictures_of_16_bits_and_floats_go_through_the_float_graph(deep_bundle_folder: Path) -> None:
    with Deblurrer.load(deep_bundle_folder, "ort-cpu") as deblurrer:
        deep = random_picture(1, (90, 70), "uint16")
        assert np.array_equal(deblurrer.deblur(deep), 65535 - deep)
        floats = random_picture(2, (90, 70), "float32")
        np.testing.assert_array_equal(deblurrer.deblur(floats), 1 - floats)
        plain = random_picture(3, (90, 70), "uint8")
        assert np.array_equal(deblurrer.deblur(plain), 255 - plain)
    with pytest.raises(BackendError, match="closed"):
        deblurrer.deblur(deep)


def test_tiles_of_deep_pictures_keep_to_what_was_asked(deep_bundle_folder: Path) -> None:
    deep = random_picture(1, (200, 170), "uint16")
    with Deblurrer.load(deep_bundle_folder, "ort-cpu", tile=(64, 64), overlap_px=8) as deblurrer:
        assert np.array_equal(deblurrer.deblur(deep), 65535 - deep)


def test_a_bundle_without_a_float_graph_refuses_deep_pictures(bundle_folder: Path, noise: Noise) -> None:
    with Deblurrer.load(bundle_folder, "ort-cpu") as deblurrer:
        with pytest.raises(BundleError, match="no graph for pictures of more than 8 bits: deploy the checkpoint again"):
            deblurrer.deblur(np.zeros((8, 8, 3), np.uint16))
        deblurrer.deblur(noise(8, 8, 3))


def test_another_backend_for_deep_pictures_is_announced_once(
    deep_bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = open_bundle(deep_bundle_folder)
    with caplog.at_level(logging.WARNING):
        open_float_backend(bundle, "ort-cpu").close()
        assert not caplog.messages
        open_float_backend(bundle, "rtx").close()
    assert caplog.messages == ["pictures of more than 8 bits run on ort-cpu, since rtx takes 8-bit ones alone"]


def test_memory_bounds_the_tiles(bundle_folder: Path, noise: Noise) -> None:
    with (
        Deblurrer.load(bundle_folder, "ort-cpu", memory_bytes=50 * 2**20) as small,
        Deblurrer.load(bundle_folder, "ort-cpu") as usual,
    ):
        assert small.backend.limits.area_px < usual.backend.limits.area_px
        picture = noise(400, 600, 3)
        assert np.array_equal(small.deblur(picture), 255 - picture)


def test_too_little_memory_for_any_tile_is_an_error(bundle_folder: Path) -> None:
    with pytest.raises(BackendError, match=r"ort-cpu: a memory of 1 MiB does not suffice .* allow \d+ MiB or more"):
        Deblurrer.load(bundle_folder, "ort-cpu", memory_bytes=2**20)


def test_auto_takes_a_backend_that_works_and_says_why_not_a_faster_one(
    bundle_folder: Path, noise: Noise, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Deblurrer.load(bundle_folder) as deblurrer:
        picture = noise(8, 8, 3)
        assert np.array_equal(deblurrer.deblur(picture), 255 - picture)
        faster = BACKENDS[: BACKENDS.index(deblurrer.backend.name)]
    assert [reason.partition(": ")[0] for reason in deblurrer.passed_over] == list(faster)
    assert {"rtx", "tensorrt"} <= set(faster), "the bundle holds no engine"
    assert len(caplog.messages) == 1
    assert all(reason in caplog.text for reason in deblurrer.passed_over)


def test_a_backend_asked_for_by_name_passes_none_over(bundle_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Deblurrer.load(bundle_folder, "ort-cpu") as deblurrer:
        assert deblurrer.backend.name == "ort-cpu"
    assert deblurrer.passed_over == ()
    assert not caplog.messages


@pytest.mark.parametrize("name", ["rtx", "tensorrt"])
def test_a_backend_asked_for_by_name_is_an_error_where_it_cannot_run(bundle_folder: Path, name: str) -> None:
    with pytest.raises(BackendError, match=f"^backend {name}: "):
        Deblurrer.load(bundle_folder, name)


@pytest.mark.parametrize("name", ["", "cpu", "RTX", "ort_cpu"])
def test_an_unknown_backend_is_an_error_that_names_the_known_ones(bundle_folder: Path, name: str) -> None:
    with pytest.raises(BackendError, match=f"no backend {name!r}.*auto, {', '.join(BACKENDS)}"):
        Deblurrer.load(bundle_folder, name)


def test_without_onnx_runtime_the_error_gives_the_pip_command(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(BackendError, match=r"onnxruntime is not installed \(pip install 'msan\[cpu\]'\)"):
        Deblurrer.load(bundle_folder, "ort-cpu")


def test_a_bundle_without_a_graph_says_so_for_every_backend(bundle_folder: Path) -> None:
    manifest = load_manifest(bundle_folder)
    save_manifest(dataclasses.replace(manifest, graphs=(), files=()), bundle_folder)
    with pytest.raises(BackendError, match=r"no backend can run this bundle here\. rtx: .*ort-cpu: the bundle has no"):
        Deblurrer.load(bundle_folder)


def test_a_graph_that_is_none_is_an_error_of_one_line(bundle_folder: Path) -> None:
    (bundle_folder / "fp32.onnx").write_bytes(b"not a graph")
    manifest = load_manifest(bundle_folder)
    files = (describe_file(bundle_folder, "fp32.onnx"),)
    save_manifest(dataclasses.replace(manifest, files=files), bundle_folder)
    with pytest.raises(BackendError, match="ONNX Runtime cannot load the graph") as caught:
        Deblurrer.load(bundle_folder, "ort-cpu")
    assert "\n" not in str(caught.value)


def test_the_package_offers_its_door_and_its_exception_root() -> None:
    assert msan_runtime.Deblurrer is Deblurrer
    assert issubclass(BundleError, msan_runtime.MsanError)
    assert msan_runtime.MsanError is MsanError
    with pytest.raises(AttributeError, match="no attribute 'deblurr'"):
        msan_runtime.deblurr  # noqa: B018 # pyright: ignore
