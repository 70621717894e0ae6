"""Model repositories for Triton: parsed back by the definitions that Triton publishes, and run as Triton would."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from PIL import Image

from msan_runtime.bundle import Bundle, find_bundle, open_bundle
from msan_runtime.errors import BundleError
from msan_runtime.manifest import EngineEntry, Profile
from msan_runtime.triton import PACKAGED_FILE, package_for_triton


@pytest.fixture(scope="module")
def definitions() -> ModuleType:
    """``model_config.proto`` compiled, out of Triton's own client; its package would want gRPC."""
    client = importlib.util.find_spec("tritonclient")
    assert client is not None
    assert client.submodule_search_locations
    path = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(definitions: ModuleType, folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), definitions.ModelConfig())


def named(bundle: Bundle, name: str) -> Bundle:
    return Bundle(folder=bundle.folder, manifest=replace(bundle.manifest, name=name))


def with_engine(bundle: Bundle, batch: int) -> Bundle:
    """The bundle with its engine said to be of classic TensorRT."""
    (engine,) = bundle.manifest.engines
    profile = Profile(min=(1, 8, 8), opt=(1, 64, 64), max=(batch, 64, 64))
    classic: EngineEntry = replace(engine, flavour="tensorrt", profile=profile)
    return Bundle(folder=bundle.folder, manifest=replace(bundle.manifest, engines=(classic,)))


def test_the_configuration_says_what_the_graph_takes_and_gives(definitions: ModuleType, tmp_path: Path) -> None:
    bundle = open_bundle()
    models = package_for_triton(bundle, tmp_path / "models")
    assert [model.name for model in models] == ["msan-s", "msan-s-tensorrt"]
    for model in models:
        folder = tmp_path / "models" / model.name
        config = parsed(definitions, folder)
        session: Any = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
        for told, value in ((config.input[0], session.get_inputs()[0]), (config.output[0], session.get_outputs()[0])):
            assert told.name == value.name
            assert definitions.DataType.Name(told.data_type) == "TYPE_UINT8"
            # Triton leaves out the first dimension, the batch.
            free: Sequence[Any] = value.shape[1:]
            assert [n if isinstance(n, int) else -1 for n in free] == list(told.dims) == [-1, -1, 3]
        assert config.name == model.name
        assert config.platform == "onnxruntime_onnx"
        assert config.max_batch_size == 4
        assert config.HasField("dynamic_batching")
        kind = definitions.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind)
        assert kind == "KIND_GPU"
        assert config.parameters["msan.contract_version"].string_value == "1"
        assert (folder / "1" / "model.onnx").read_bytes() == bundle.read("msan-s.fp16.onnx")


def test_the_tensorrt_model_is_handed_to_tensorrt(definitions: ModuleType, tmp_path: Path) -> None:
    package_for_triton(open_bundle(), tmp_path)
    plain, fast = (parsed(definitions, tmp_path / name) for name in ("msan-s", "msan-s-tensorrt"))
    accelerators = fast.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in accelerators] == ["tensorrt"]
    assert not plain.optimization.execution_accelerators.gpu_execution_accelerator


def test_the_warm_up_gives_the_picture_of_the_self_test(definitions: ModuleType, tmp_path: Path) -> None:
    """As Triton does it: raw bytes of the file, in the shape of the configuration, one picture a batch."""
    bundle = open_bundle()
    package_for_triton(bundle, tmp_path, device="cpu")
    config = parsed(definitions, tmp_path / "msan-s")
    (warmup,) = config.model_warmup
    value = warmup.inputs["blurred"]
    data = (tmp_path / "msan-s" / "warmup" / value.input_data_file).read_bytes()
    batch = np.frombuffer(data, np.uint8).reshape(1, *value.dims)
    session: Any = onnxruntime.InferenceSession(
        tmp_path / "msan-s" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (given,) = session.run(["deblurred"], {"blurred": batch})
    test = bundle.manifest.self_test
    assert test is not None
    with Image.open(bundle.folder / test.deblurred) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(given[0] - expected).max() <= 1


def test_on_a_cpu_there_is_one_model_in_fp32(definitions: ModuleType, tmp_path: Path) -> None:
    bundle = open_bundle()
    (model,) = package_for_triton(bundle, tmp_path, device="cpu", max_batch=1)
    assert model.source == "msan-s.fp32.onnx"
    config = parsed(definitions, tmp_path / "msan-s")
    assert definitions.ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) == "KIND_CPU"
    assert not config.HasField("dynamic_batching")


def test_an_engine_of_classic_tensorrt_is_taken(definitions: ModuleType, tmp_path: Path) -> None:
    bundle = with_engine(open_bundle(), batch=2)
    package_for_triton(bundle, tmp_path)
    config = parsed(definitions, tmp_path / "msan-s-tensorrt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 2)
    assert (tmp_path / "msan-s-tensorrt" / "1" / "model.plan").read_bytes() == bundle.read("msan-s.rtx.engine")


def test_what_msan_wrote_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    bundle = open_bundle()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.pbtxt").write_text("name: 'other'")
    package_for_triton(bundle, tmp_path)
    (tmp_path / "msan-s" / "1" / "model.onnx").write_bytes(b"old")
    package_for_triton(bundle, tmp_path)
    assert (tmp_path / "msan-s" / "1" / "model.onnx").read_bytes() == bundle.read("msan-s.fp16.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["msan-s", "msan-s-tensorrt", "other"]
    (tmp_path / "msan-s" / PACKAGED_FILE).unlink()
    with pytest.raises(BundleError, match="was not made by msan package"):
        package_for_triton(bundle, tmp_path)


def test_the_models_of_another_device_do_not_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other-tensorrt").mkdir()
    package_for_triton(open_bundle("msan-s"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"other-tensorrt", "msan-s", "msan-s-tensorrt"}
    package_for_triton(open_bundle("msan-s"), tmp_path, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"other-tensorrt", "msan-s"}
    assert "msan-s-tensorrt is removed: an earlier msan package wrote it for another device" in caplog.text


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "two words", "ünï", 'quo"te'])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be that of a model in Triton"):
        package_for_triton(named(open_bundle(), name), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_changed_bundle_leaves_no_half_model(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_bundle("msan-s"), tmp_path / "bundle"))
    bundle = open_bundle(folder)
    (folder / "msan-s.fp16.onnx").write_bytes(b"changed")
    with pytest.raises(BundleError, match="was changed since"):
        package_for_triton(bundle, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_a_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="at least one picture, not 0"):
        package_for_triton(open_bundle(), tmp_path, max_batch=0)
