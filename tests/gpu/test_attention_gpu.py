"""Attention over the whole picture at the most keys that fused kernels bear, 65,504, and beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.gpu.pictures import blurred_picture, psnr_db

from msan_runtime.attention import GLOBAL, TOKEN_PX
from msan_runtime.backends import ort, rtx, trt
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import PictureArray
from msan_runtime.engines.building import EngineSpec, Flavour
from msan_runtime.engines.rebuilding import this_gpu
from msan_runtime.errors import ContractError, OutOfMemoryError
from msan_runtime.manifest import Profile
from msan_runtime.memory import MOST_KEYS, tile_limits_within
from msan_runtime.tiling import TiledRunner

if TYPE_CHECKING:
    from msan.checkpoint import Checkpoint

pytestmark = pytest.mark.gpu

AT_THE_LIMIT = (1472, 2848)
"""65,504 keys."""

OVER_THE_LIMIT = (2048, 2048)
"""65,536 keys."""

PROFILE = Profile(min=(1, 64, 64), opt=(1, *AT_THE_LIMIT), max=(1, 2048, 2848))

LEAST_DB = 40.0
"""Of a network of random weights, whose attention is sharper than a trained one's. Not-a-number gives some 10 dB."""

FLAVOURS: dict[str, Flavour] = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


class TorchBackend(Backend):
    """The network in PyTorch, FP32, with PyTorch's own attention, which holds no matrix of keys × keys either."""

    name = "pytorch"

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch

        from msan.checkpoint import network_from_checkpoint
        from msan_export.graph import DeployableMsan

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = DeployableMsan(network_from_checkpoint(checkpoint, GLOBAL), "uint8").to(self.device)

    def infer(self, tiles: PictureArray) -> PictureArray:
        import torch

        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            return self._network(torch.from_numpy(tiles).to(self.device)).cpu().numpy()


@pytest.fixture(scope="module")
def exporter() -> None:
    """What exports a checkpoint is installed."""
    for package in ("torch", "safetensors", "onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: it exports the network with global attention")


@pytest.fixture(scope="module")
def pytorch(device_name: str, exporter: None, request: pytest.FixtureRequest) -> TorchBackend:
    del device_name, exporter
    return TorchBackend(request.getfixturevalue("tiny"))


@pytest.fixture(scope="module")
def graph(
    device_name: str, exporter: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """A small network in FP16 with attention over the whole picture."""
    del device_name, exporter
    from msan_export.onnx import export_onnx

    path: Path = tmp_path_factory.mktemp("global") / "global.fp16.onnx"
    export_onnx(request.getfixturevalue("tiny"), path, precision="fp16", attention=GLOBAL)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(device_name: str, graph: bytes) -> Iterator[Backend]:
    """The network on the GPU, with the limits that msan gives it."""
    with opened(device_name, graph) as backend:
        yield backend


def opened(name: str, graph: bytes) -> Backend:
    if name == "ort-cuda":
        manifest = dataclasses.replace(open_bundle().manifest, attention=str(GLOBAL))
        return ort.open_ort(graph, name, limits=tile_limits_within(manifest, 2**50))
    from msan_export.engine import build_engine, engine_entry

    spec = EngineSpec(flavour=FLAVOURS[name], profile=PROFILE, capabilities=(this_gpu().capability,))
    engine = build_engine(graph, spec, "fp16")
    entry = engine_entry(engine, "global.engine", "global.fp16.onnx")
    return rtx.open_rtx(engine.data, entry) if name == "rtx" else trt.open_tensorrt(engine.data, entry)


def given_by(backend: Backend, tile: PictureArray) -> PictureArray:
    try:
        return backend.infer(tile)
    except OutOfMemoryError as error:
        pytest.skip(f"the GPU has too little memory for {keys(tile.shape[1:3]):,} keys: {error}")


def keys(size: tuple[int, ...]) -> int:
    return size[0] * size[1] // TOKEN_PX**2


def holes(given: PictureArray, expected: PictureArray) -> float:
    """The share of values that are black where they should not be: not-a-number becomes 0 in 8 bits."""
    return float(np.mean((given == 0) & (expected > 16)))


def test_a_tile_of_the_most_keys_is_pytorchs(
    whole: Backend, pytorch: TorchBackend, record_property: Callable[[str, object], None]
) -> None:
    tile = blurred_picture(*AT_THE_LIMIT)[None]
    assert keys(AT_THE_LIMIT) == MOST_KEYS
    given, expected = given_by(whole, tile), pytorch.infer(tile)
    record_property("PSNR in dB", round(psnr_db(given, expected), 2))
    assert holes(given, expected) == 0
    assert psnr_db(given, expected) >= LEAST_DB


def test_a_tile_of_more_keys_is_refused(whole: Backend) -> None:
    assert keys(OVER_THE_LIMIT) > MOST_KEYS
    with pytest.raises(ContractError, match="over this backend's largest area"):
        whole.infer(blurred_picture(*OVER_THE_LIMIT)[None])


def test_a_picture_of_more_keys_comes_in_tiles_and_whole(whole: Backend, pytorch: TorchBackend) -> None:
    picture = blurred_picture(*OVER_THE_LIMIT)
    runner = TiledRunner(whole)
    assert keys(runner.plan(*OVER_THE_LIMIT).tile) <= MOST_KEYS
    (given,) = runner.run([picture])
    pytorch.limits = runner.limits  # halved where the memory did not suffice
    (expected,) = TiledRunner(pytorch).run([picture])
    assert holes(given, expected) == 0
    assert psnr_db(given, expected) >= LEAST_DB


def test_what_comes_of_more_keys_is_told_and_breaks_nothing(
    whole: Backend, pytorch: TorchBackend, record_property: Callable[[str, object], None]
) -> None:
    """Right or wrong, it is recorded: the limit above is there for devices that are wrong here."""
    over, small = blurred_picture(*OVER_THE_LIMIT)[None], blurred_picture(256, 384)[None]
    limits: Any = whole.limits
    single = whole.infer(small)
    assert psnr_db(single, pytorch.infer(small)) >= LEAST_DB
    whole.limits = dataclasses.replace(limits, area_px=OVER_THE_LIMIT[0] * OVER_THE_LIMIT[1])
    try:
        given = given_by(whole, over)
    finally:
        whole.limits = limits
    expected = pytorch.infer(over)
    record_property("PSNR in dB over the limit", round(psnr_db(given, expected), 2))
    record_property("share of holes over the limit", holes(given, expected))
    assert psnr_db(whole.infer(small), single) >= LEAST_DB
