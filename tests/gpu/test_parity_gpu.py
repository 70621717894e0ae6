"""The picture that the GPU gives against the CPU's in FP32, for every size and type of picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.gpu.pictures import assert_alike, blurred_picture, levels_apart, psnr_db

from msan_runtime import Deblurrer
from msan_runtime.backends import ort
from msan_runtime.backends.base import TileLimits
from msan_runtime.bundle import open_bundle
from msan_runtime.tiling import TiledRunner

pytestmark = pytest.mark.gpu

Recorder = Callable[[str, object], None]

TILE = (256, 320)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (250, 371), (371, 129), (720, 1280)])
def test_the_device_gives_the_cpus_picture(
    on_device: Deblurrer, reference: Deblurrer, height: int, width: int, record_property: Recorder
) -> None:
    plans = [TiledRunner(deblurrer.backend).plan(height, width) for deblurrer in (on_device, reference)]
    assert plans[0] == plans[1], "other tiles would mean another result"
    picture = blurred_picture(height, width)
    given, expected = on_device.deblur(picture), reference.deblur(picture)
    record_property("levels apart", levels_apart(given, expected))
    record_property("PSNR in dB", round(psnr_db(given, expected), 2))
    assert_alike(given, expected)


def test_the_smallest_tile_is_the_cpus(on_device: Deblurrer, reference: Deblurrer) -> None:
    smallest = on_device.backend.limits.smallest
    tile = blurred_picture(*smallest)[None]
    assert_alike(on_device.backend.infer(tile), reference.backend.infer(tile))


def test_a_picture_in_tiles_is_the_cpus(device_name: str) -> None:
    picture = blurred_picture(500, 700)
    with Deblurrer.load(backend=device_name, tile=TILE) as on_device:
        given = on_device.deblur(picture)
    with Deblurrer.load(backend="ort-cpu", tile=TILE) as on_cpu:
        assert_alike(given, on_cpu.deblur(picture))


def test_a_picture_of_16_bits_is_the_cpus(on_device: Deblurrer, reference: Deblurrer) -> None:
    picture = blurred_picture(248, 373).astype(np.uint16) * 257 + np.arange(373, dtype=np.uint16)[:, None] % 200
    assert_alike(on_device.deblur(picture), reference.deblur(picture))


@pytest.mark.usefixtures("ort_cuda")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_each_graph_gives_the_cpus_picture_in_onnx_runtime(precision: str, reference: Deblurrer) -> None:
    bundle = open_bundle()
    graph = bundle.graph(prefer=(precision,))
    assert graph is not None
    limits = TileLimits(area_px=1280 * 720)
    with ort.open_ort(bundle.read(graph.path), "ort-cuda", limits=limits) as backend:
        for size in ((8, 8), (256, 384), (720, 1280), (64, 64)):
            tile = blurred_picture(*size)[None]
            assert_alike(backend.infer(tile), reference.backend.infer(tile))
