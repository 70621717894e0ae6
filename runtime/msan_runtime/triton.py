"""A bundle as a model repository of NVIDIA's Triton Inference Server.

Sources: Triton's documentation of model repositories and model configuration, and its ``model_config.proto``.
"""

from __future__ import annotations

import io
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from msan_runtime.atomic import replacing_folder
from msan_runtime.bundle import Bundle
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME
from msan_runtime.errors import BundleError
from msan_runtime.manifest import EngineEntry

__all__ = ["PACKAGED_FILE", "TritonDevice", "TritonModel", "package_for_triton"]

TritonDevice = Literal["gpu", "cpu"]

logger = logging.getLogger(__name__)

PACKAGED_FILE = "msan-bundle.txt"
"""In every model folder that msan wrote: which bundle it is of. A folder without it is never replaced."""

QUEUE_DELAY_US = 2000
"""How long a request waits for others of its size."""

WARMUP_NAME = "self-test"


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """One model of the repository.

    Attributes:
        name: of its folder, and for clients.
        platform: ``onnxruntime_onnx`` or ``tensorrt_plan``.
        file: in the version's folder, and ``source``: in the bundle.
        max_batch: pictures of one size that a run takes.
        accelerated: whether ONNX Runtime hands the graph to TensorRT.
    """

    name: str
    platform: str
    file: str
    source: str
    max_batch: int
    accelerated: bool = False


def package_for_triton(
    bundle: Bundle, folder: Path, *, device: TritonDevice = "gpu", max_batch: int = 4
) -> tuple[TritonModel, ...]:
    """Write a model repository at ``folder``, or into it: a folder for each model, whole or not at all.

    Models: the ONNX graph (FP16 on a GPU, FP32 on a CPU); on a GPU also the same graph through ONNX Runtime's
    TensorRT, and the engine of classic TensorRT if the bundle has one. Triton has no backend for TensorRT-RTX.
    Each takes uint8 pictures (batch, height, width, 3) under the image contract: sides are multiples of 8.

    Args:
        bundle: what to package.
        folder: of the repository; models of other makers in it are left alone.
        device: what instances run on.
        max_batch: of the ONNX models; an engine's is that of its profile.

    Raises:
        BundleError: if the bundle has no graph for ``device``, its name cannot be a model's, ``max_batch`` is under
            1, or a folder of the same name is not of msan.
        OSError: if ``folder`` cannot be written.
    """
    if max_batch < 1:
        raise BundleError(f"a batch holds at least one picture, not {max_batch}: give --max-batch 1 or more")
    models = tuple(_models(bundle, device, max_batch))
    for model in models:
        target = folder / model.name
        if target.exists() and not (target / PACKAGED_FILE).is_file():
            raise BundleError(f"{target} exists and was not made by msan package: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        with replacing_folder(folder / model.name) as stage:
            _write(bundle, model, device, stage)
    _remove_others(bundle, folder, models)
    return models


def _remove_others(bundle: Bundle, folder: Path, models: Sequence[TritonModel]) -> None:
    """Remove what an earlier call wrote of the same bundle and this one did not, as for another device."""
    names = {bundle.manifest.name, f"{bundle.manifest.name}-tensorrt"} - {model.name for model in models}
    for path in (folder / name for name in sorted(names)):
        if (path / PACKAGED_FILE).is_file():
            shutil.rmtree(path)
            logger.warning("%s is removed: an earlier msan package wrote it for another device", path)


def _models(bundle: Bundle, device: TritonDevice, max_batch: int) -> Sequence[TritonModel]:
    name = bundle.manifest.name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise BundleError(
            f"the network's name {name!r} cannot be that of a model in Triton: it takes letters, digits, . _ -"
        )
    graph = bundle.graph(prefer=("fp16", "fp32") if device == "gpu" else ("fp32", "fp16"))
    if graph is None:
        raise BundleError(f"the bundle {name} has no ONNX graph with uint8 pictures: deploy the checkpoint again")
    plain = TritonModel(
        name=name, platform="onnxruntime_onnx", file="model.onnx", source=graph.path, max_batch=max_batch
    )
    if device == "cpu":
        return (plain,)
    accelerated = TritonModel(
        name=f"{name}-tensorrt",
        platform="onnxruntime_onnx",
        file="model.onnx",
        source=graph.path,
        max_batch=max_batch,
        accelerated=True,
    )
    engine = bundle.engine("tensorrt")
    return (plain, accelerated if engine is None else _native(name, engine))


def _native(name: str, engine: EngineEntry) -> TritonModel:
    return TritonModel(
        name=f"{name}-tensorrt",
        platform="tensorrt_plan",
        file="model.plan",
        source=engine.path,
        max_batch=engine.profile.max[0],
    )


def _write(bundle: Bundle, model: TritonModel, device: TritonDevice, stage: Path) -> None:
    (stage / "1").mkdir()
    (stage / "1" / model.file).write_bytes(bundle.read(model.source))
    shape = _write_warmup(bundle, stage)
    (stage / "config.pbtxt").write_text(_config(bundle, model, device, shape), encoding="utf-8")
    sha256 = bundle.manifest.file(model.source).sha256
    (stage / PACKAGED_FILE).write_text(f"{bundle.manifest.name} {model.source} {sha256}\n", encoding="utf-8")


def _write_warmup(bundle: Bundle, stage: Path) -> tuple[int, ...] | None:
    """The self-test's picture as raw bytes, where Triton looks for it; its shape, or ``None`` if there is none."""
    test = bundle.manifest.self_test
    if test is None:
        return None
    with Image.open(io.BytesIO(bundle.read(test.blurred)), formats=["PNG"]) as image:
        picture = np.asarray(image.convert("RGB"))
    (stage / "warmup").mkdir()
    (stage / "warmup" / WARMUP_NAME).write_bytes(picture.tobytes())
    return picture.shape


def _config(bundle: Bundle, model: TritonModel, device: TritonDevice, warmup: tuple[int, ...] | None) -> str:
    """``config.pbtxt``, a ``ModelConfig`` of ``model_config.proto`` in protobuf's text form."""
    parts = [
        f"name: {_quoted(model.name)}",
        f"platform: {_quoted(model.platform)}",
        f"max_batch_size: {model.max_batch}",
        _tensor("input", INPUT_NAME),
        _tensor("output", OUTPUT_NAME),
        f"instance_group [ {{ kind: KIND_{device.upper()} count: 1 }} ]",
        "version_policy { latest { num_versions: 1 } }",
    ]
    if model.max_batch > 1:
        # Triton joins requests of one shape alone: pictures of other sizes wait for others like them.
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}")
    if warmup is not None:
        parts.append(_warmup(warmup))
    if model.accelerated:
        parts.append(_ACCELERATOR)
    parts += [_parameter(key, value) for key, value in _parameters(bundle, model).items()]
    return "\n".join(parts) + "\n"


def _tensor(kind: str, name: str) -> str:
    return f"{kind} [ {{ name: {_quoted(name)} data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }} ]"


def _warmup(shape: Sequence[int]) -> str:
    dims = ", ".join(map(str, shape))
    value = f"data_type: TYPE_UINT8 dims: [ {dims} ] input_data_file: {_quoted(WARMUP_NAME)}"
    inputs = f"inputs {{ key: {_quoted(INPUT_NAME)} value {{ {value} }} }}"
    return f"model_warmup [ {{ name: {_quoted(WARMUP_NAME)} batch_size: 1 {inputs} }} ]"


def _parameters(bundle: Bundle, model: TritonModel) -> Mapping[str, str]:
    """What a client may want to know of a model: it reads them from the model's configuration."""
    return {
        "msan.contract_version": str(bundle.manifest.contract_version),
        "msan.attention": bundle.manifest.attention,
        "msan.sha256": bundle.manifest.file(model.source).sha256,
    }


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


_ACCELERATOR = """\
optimization { execution_accelerators { gpu_execution_accelerator [ {
  name: "tensorrt"
  parameters { key: "precision_mode" value: "FP16" }
  parameters { key: "trt_engine_cache_enable" value: "true" }
  parameters { key: "trt_engine_cache_path" value: "/tmp/msan-engines" }
} ] } }"""


def _quoted(text: str) -> str:
    """A string of protobuf's text form."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
