"""Which backend runs a bundle on this machine, and why, in words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend
from msan_runtime.backends.contest import contest_conditions, recall_verdict, remember_verdict, timed_verdict
from msan_runtime.backends.openvino import OpenVinoBackend, OpenVinoName, open_openvino
from msan_runtime.backends.openvino import unavailable as openvino_unavailable
from msan_runtime.bundle import Bundle
from msan_runtime.cache import cache_folder
from msan_runtime.errors import BackendError, BundleError, MsanError
from msan_runtime.manifest import EngineEntry, GraphEntry
from msan_runtime.memory import engine_limits_within, tile_limits_within

__all__ = ["BACKENDS", "BackendName", "Selection", "open_float_backend", "select_backend"]

BackendName = Literal["rtx", "tensorrt", "ort-cuda", "openvino-bf16", "openvino", "ort-cpu"]

BACKENDS: tuple[str, ...] = get_args(BackendName)
"""In order of preference: fastest first. ``auto`` takes those of OpenVINO only where they are not slower than FP32 in
``ort-cpu``, and give its picture: :mod:`msan_runtime.backends.contest`."""

CPU_PRECISIONS = ("fp32", "fp16")
"""In order of preference. A CPU computes FP16 graphs in FP32 anyway: the FP32 graph is as fast and more exact."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The backend that was taken, and why each one before it was passed over."""

    backend: Backend
    passed_over: tuple[str, ...]


def select_backend(bundle: Bundle, name: str = "auto", *, memory_bytes: int | None = None) -> Selection:
    """Open the backend called ``name``; for ``auto`` the first of ``BACKENDS`` that works here.

    ``memory_bytes`` bounds the tiles; if left out, ``DEFAULT_MEMORY_BYTES`` where an ONNX graph is run, and an
    engine's profile alone where one is run.
    With ``auto`` the backends passed over and their reasons are logged as one warning: a machine
    with an NVIDIA GPU that ends up on the CPU says why. A name means that backend or an error.

    Raises:
        BackendError: for an unknown name, or if the backend asked for (or every one) cannot run.
    """
    if name != "auto" and name not in BACKENDS:
        raise BackendError(f"no backend {name!r}. There are: auto, {', '.join(BACKENDS)}")
    passed_over: list[str] = []
    for candidate in BACKENDS if name == "auto" else (name,):
        result = _try(candidate, bundle, memory_bytes)
        if name == "auto" and isinstance(result, OpenVinoBackend):
            result = _if_it_wins(result, bundle, memory_bytes)
        if isinstance(result, Backend):
            if passed_over:
                logger.warning("running on %s, since %s", result.name, "; ".join(passed_over))
            return Selection(backend=result, passed_over=tuple(passed_over))
        passed_over.append(f"{candidate}: {result}")
    if name == "auto":
        raise BackendError("no backend can run this bundle here. " + "; ".join(passed_over))
    raise BackendError(f"backend {passed_over[0]}")


def open_float_backend(bundle: Bundle, running: str, *, memory_bytes: int | None = None) -> Backend:
    """A backend for float32 pictures, beside the one called ``running``: the same if it runs graphs, else ``ort-cpu``.

    Raises:
        BundleError: if the bundle has no graph of float pictures.
        BackendError: if it cannot run here.
    """
    entry = bundle.graph(prefer=("fp32",), io="float32")
    if entry is None:
        raise BundleError(
            f"the bundle {bundle.manifest.name} has no graph for pictures of more than 8 bits: "
            "deploy the checkpoint again, or convert the picture to 8 bits"
        )
    limits = tile_limits_within(bundle.manifest, memory_bytes)
    if running in ("openvino", "openvino-bf16"):
        # 8 bits of mantissa are too few for more than 8 bits of a picture: FP32 in both.
        return open_openvino(bundle.read(entry.path), limits=limits, io="float32")
    name: ort.OrtName = "ort-cuda" if running == "ort-cuda" else "ort-cpu"
    if name != running:
        logger.warning("pictures of more than 8 bits run on %s, since %s takes 8-bit ones alone", name, running)
    _require(ort.unavailable(name))
    return ort.open_ort(bundle.read(entry.path), name, limits=limits, io="float32")


def _try(name: str, bundle: Bundle, memory_bytes: int | None) -> Backend | str:
    """The open backend, or the reason why not."""
    try:
        return _OPENERS[name](bundle, memory_bytes)
    except MsanError as error:
        return str(error)


def _if_it_wins(backend: OpenVinoBackend, bundle: Bundle, memory_bytes: int | None) -> Backend | str:
    """``backend``, or why not: slower than FP32 in another on this machine, or astray. Found once, then remembered."""
    graph = _graph(bundle, CPU_PRECISIONS)
    sha256 = bundle.manifest.file(graph.path).sha256
    conditions = contest_conditions(backend.name, sha256, ("openvino", "onnxruntime"))
    verdict = recall_verdict(conditions)
    if verdict is None:
        rival = _try("ort-cpu", bundle, memory_bytes)
        if isinstance(rival, str) and backend.name == "openvino-bf16":
            rival = _try("openvino", bundle, memory_bytes)
        if isinstance(rival, str):
            return backend
        try:
            with rival:
                verdict = timed_verdict(backend, rival)
        except BackendError as error:
            backend.close()
            return str(error)
        remember_verdict(conditions, verdict)
    if not (verdict.slower or verdict.astray):
        return backend
    backend.close()
    return str(verdict)


def _open_ort(bundle: Bundle, memory_bytes: int | None, name: ort.OrtName, prefer: tuple[str, ...]) -> Backend:
    _require(ort.unavailable(name))
    limits = tile_limits_within(bundle.manifest, memory_bytes)
    return ort.open_ort(bundle.read(_graph(bundle, prefer).path), name, limits=limits)


def _open_ort_cpu(bundle: Bundle, memory_bytes: int | None) -> Backend:
    return _open_ort(bundle, memory_bytes, "ort-cpu", CPU_PRECISIONS)


def _open_ort_cuda(bundle: Bundle, memory_bytes: int | None) -> Backend:
    return _open_ort(bundle, memory_bytes, "ort-cuda", ("fp16", "fp32"))


def _open_openvino(bundle: Bundle, memory_bytes: int | None, name: OpenVinoName = "openvino") -> Backend:
    _require(openvino_unavailable(name))
    limits = tile_limits_within(bundle.manifest, memory_bytes)
    return open_openvino(bundle.read(_graph(bundle, CPU_PRECISIONS).path), name, limits=limits)


def _graph(bundle: Bundle, prefer: tuple[str, ...]) -> GraphEntry:
    graph = bundle.graph(prefer=prefer)
    if graph is None:
        raise BackendError("the bundle has no ONNX graph with uint8 pictures")
    return graph


def _open_rtx(bundle: Bundle, memory_bytes: int | None) -> Backend:
    from msan_runtime.backends import rtx

    _require(rtx.unavailable())
    entry = _engine(bundle, "tensorrt-rtx", "TensorRT-RTX engine (add one with msan deploy --gpu)")
    kernels = cache_folder() / "kernels" / f"{bundle.manifest.file(entry.path).sha256}.bin"
    backend = rtx.open_rtx(bundle.read(entry.path), entry, jit_cache=kernels)
    return _bounded(backend, bundle, entry, memory_bytes)


def _open_tensorrt(bundle: Bundle, memory_bytes: int | None) -> Backend:
    from msan_runtime.backends import trt

    _require(trt.unavailable())
    entry = _engine(bundle, "tensorrt", "TensorRT engine (add one with msan deploy --flavour tensorrt)")
    return _bounded(trt.open_tensorrt(bundle.read(entry.path), entry), bundle, entry, memory_bytes)


def _engine(bundle: Bundle, flavour: str, what: str) -> EngineEntry:
    entry = bundle.engine(flavour)
    if entry is None:
        raise BackendError(f"the bundle has no {what}")
    return entry


def _bounded(backend: Backend, bundle: Bundle, entry: EngineEntry, memory_bytes: int | None) -> Backend:
    """``backend``, given no larger tiles than ``memory_bytes`` allows."""
    try:
        batch = entry.profile.max[0]
        backend.limits = engine_limits_within(bundle.manifest, backend.limits, memory_bytes, batch=batch)
    except BackendError:
        backend.close()
        raise
    return backend


def _require(problem: str | None) -> None:
    if problem is not None:
        raise BackendError(problem)


_OPENERS: dict[str, Callable[[Bundle, int | None], Backend]] = {
    "rtx": _open_rtx,
    "tensorrt": _open_tensorrt,
    "ort-cuda": _open_ort_cuda,
    "openvino-bf16": partial(_open_openvino, name="openvino-bf16"),
    "openvino": _open_openvino,
    "ort-cpu": _open_ort_cpu,
}
