"""Engine builds without a GPU: types are proved, wrong graphs and targets refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from msan.checkpoint import Checkpoint
from msan.spec import ModelSpec
from msan_export.engine import BuildError, EngineSpec, build_engine, save_engine
from msan_export.onnx import export_onnx
from msan_runtime.attention import Attention
from msan_runtime.errors import BundleError, CheckFailedError, MissingExtraError
from msan_runtime.manifest import Profile
from msan_runtime.targets import capabilities_named

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this machine")

RTX30 = EngineSpec(capabilities=capabilities_named("rtx30"))


@pytest.fixture(scope="module")
def fp16(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return export_onnx(tiny, tmp_path_factory.mktemp("fp16") / "tiny.onnx", precision="fp16").path.read_bytes()


@pytest.fixture(scope="module")
def windowed(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("windowed") / "tiny.onnx"
    return export_onnx(tiny, path, precision="fp16", attention=Attention(window_px=192)).path.read_bytes()


@pytest.fixture(scope="module")
def fp32(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return export_onnx(tiny, tmp_path_factory.mktemp("fp32") / "tiny.onnx", precision="fp32").path.read_bytes()


@pytest.fixture(scope="module")
def fp32_without_attention(
    make_checkpoint: Callable[[ModelSpec], Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    checkpoint = make_checkpoint(ModelSpec(stages=1, base_channels=4, resblocks=1, attention=False))
    path = tmp_path_factory.mktemp("m1") / "m1.onnx"
    return export_onnx(checkpoint, path, precision="fp32").path.read_bytes()


def test_an_fp16_graph_builds_and_every_heavy_layer_is_fp16(fp16: bytes) -> None:
    engine = build_engine(fp16, RTX30, "fp16")
    # Two stages of 16 convolutions, 2 + 1 transposed ones and one attention.
    assert engine.layer_types == {"attention fp16": 2, "convolution fp16": 32, "deconvolution fp16": 6}
    assert len(engine.data) > 10_000


def test_attention_in_windows_is_fused_and_fp16_too(windowed: bytes) -> None:
    """A window of 24² keys is far below what the fused kernel asks of one run; many windows are many runs."""
    engine = build_engine(windowed, RTX30, "fp16")
    assert engine.layer_types == {"attention fp16": 2, "convolution fp16": 32, "deconvolution fp16": 6}


def largest(batch: int, height: int, width: int) -> EngineSpec:
    return EngineSpec(
        capabilities=RTX30.capabilities, profile=Profile(min=(1, 8, 8), opt=(1, 8, 8), max=(batch, height, width))
    )


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 504, 528), (2, 64, 64)])
def test_the_smallest_profiles_that_global_attention_takes_are_built(
    fp16: bytes, batch: int, height: int, width: int
) -> None:
    assert build_engine(fp16, largest(batch, height, width), "fp16").data


def test_windows_take_profiles_down_to_half_a_window(windowed: bytes) -> None:
    assert build_engine(windowed, largest(1, 104, 96), "fp16").data
    with pytest.raises(BuildError, match="no fused attention kernel for a largest tile of 96x96"):
        build_engine(windowed, largest(1, 96, 96), "fp16")


def test_one_engine_serves_several_capabilities(fp16: bytes) -> None:
    spec = EngineSpec(capabilities=capabilities_named("rtx30,rtx40,rtx50"))
    assert len(build_engine(fp16, spec, "fp16").data) > 10_000


def test_an_fp32_graph_under_an_fp16_name_is_refused_and_its_layers_named(fp32: bytes) -> None:
    with pytest.raises(CheckFailedError, match=r"40 of 40 layers are not fp16: convolution \S+ is fp32"):
        build_engine(fp32, RTX30, "fp16")


def test_an_fp16_graph_under_an_fp32_name_is_refused(fp16: bytes) -> None:
    with pytest.raises(CheckFailedError, match="not fp32"):
        build_engine(fp16, RTX30, "fp32")


def test_fp32_attention_is_refused_with_the_way_out(fp32: bytes) -> None:
    with pytest.raises(BuildError, match="--precision fp16"):
        build_engine(fp32, RTX30, "fp32")


def test_an_fp32_network_without_attention_builds_in_fp32(fp32_without_attention: bytes) -> None:
    engine = build_engine(fp32_without_attention, RTX30, "fp32")
    assert engine.layer_types == {"convolution fp32": 14, "deconvolution fp32": 2}


def test_progress_is_told_from_start_to_end(fp16: bytes) -> None:
    seen: list[tuple[str, float]] = []
    build_engine(fp16, RTX30, "fp16", on_phase=lambda phase, share: seen.append((phase, share)))
    assert seen[0][1] == 0.0
    assert seen[-1][1] == 1.0
    assert all(0 <= share <= 1 for _, share in seen)


def test_a_file_that_is_no_graph_is_refused() -> None:
    with pytest.raises(BuildError, match="cannot parse"):
        build_engine(b"not a graph", RTX30, "fp16")


def test_a_capability_that_the_flavour_lacks_is_refused(fp16: bytes) -> None:
    with pytest.raises(BuildError, match="sm_90"):
        build_engine(fp16, EngineSpec(capabilities=capabilities_named("h100")), "fp16")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_flavour_that_is_not_installed_is_named_with_its_extra(fp16: bytes) -> None:
    spec = EngineSpec(flavour="tensorrt", capabilities=capabilities_named("rtx30"))
    with pytest.raises(MissingExtraError, match=r"msan\[tensorrt\]"):
        build_engine(fp16, spec, "fp16")


def test_a_profile_out_of_order_is_refused() -> None:
    with pytest.raises(BundleError, match="min <= opt <= max"):
        Profile(min=(1, 64, 64), opt=(1, 32, 64), max=(1, 128, 128))
    with pytest.raises(BundleError, match="multiples of 8"):
        Profile(min=(1, 60, 64), opt=(1, 64, 64), max=(1, 128, 128))


def test_a_saved_engine_has_its_description_beside_it(fp16: bytes, tmp_path: Path) -> None:
    engine = build_engine(fp16, RTX30, "fp16")
    path = save_engine(engine, tmp_path / "made", Path("net.fp16.onnx"))
    assert path.read_bytes() == engine.data
    entry = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert entry["compute_capabilities"] == ["8.6"]
    assert entry["precision"] == "fp16"
    assert entry["profile"]["max"] == [1, 1920, 1920]
    assert len(entry["layers"]) == 40
    assert {layer["dtype"] for layer in entry["layers"]} == {"fp16"}
