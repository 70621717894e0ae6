"""Which backend runs a bundle on this machine, and why, in words."""

from __future__ import annotations

import hashlib
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
from msan_runtime.engines.rebuilding import entry_for, rebuilt_engine, this_gpu
from msan_runtime.errors import BackendError, BundleError, EngineUnfitError, MsanError, SelfTestError
from msan_runtime.manifest import EngineEntry, GraphEntry
from msan_runtime.memory import engine_limits_within, tile_limits_within
from msan_runtime.self_test import pass_self_test

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


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is asked of a backend: bytes for a run, whether an engine may be built, whether it is tested first."""

    memory_bytes: int | None
    rebuild: bool
    self_test: bool


def select_backend(
    bundle: Bundle, name: str = "auto", *, memory_bytes: int | None = None, rebuild: bool = True, self_test: bool = True
) -> Selection:
    """Open the backend called ``name``; for ``auto`` the first of ``BACKENDS`` that works here.

    With ``auto`` the backends passed over and their reasons are logged as one warning: a machine
    with an NVIDIA GPU that ends up on the CPU says why. A name means that backend or an error.

    Args:
        bundle: what to run.
        name: ``auto``, or one of ``BACKENDS``.
        memory_bytes: bounds the tiles; if left out, ``DEFAULT_MEMORY_BYTES`` where an ONNX graph is run, and an
            engine's profile alone where one is run.
        rebuild: whether an engine that does not fit this machine is built again from the bundle's graph, which takes
            seconds the first time (:mod:`msan_runtime.engines.rebuilding`).
        self_test: whether a backend must first give the picture of the bundle's self-test.

    Raises:
        BackendError: for an unknown name, or if the backend asked for (or every one) cannot run.
    """
    if name != "auto" and name not in BACKENDS:
        raise BackendError(f"no backend {name!r}. There are: auto, {', '.join(BACKENDS)}")
    wanted = _Wanted(memory_bytes=memory_bytes, rebuild=rebuild, self_test=self_test)
    if name != "auto":
        return Selection(backend=_named(name, bundle, wanted), passed_over=())
    passed_over: list[str] = []
    for candidate in BACKENDS:
        result = _try(candidate, bundle, wanted)
        if isinstance(result, OpenVinoBackend):
            result = _if_it_wins(result, bundle, wanted)
        if isinstance(result, Backend):
            if passed_over:
                logger.warning("running on %s, since %s", result.name, "; ".join(passed_over))
            return Selection(backend=result, passed_over=tuple(passed_over))
        passed_over.append(f"{candidate}: {result}")
    raise BackendError("no backend can run this bundle here. " + "; ".join(passed_over))


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


def _named(name: str, bundle: Bundle, wanted: _Wanted) -> Backend:
    """The backend of that name and no other."""
    result = _try(name, bundle, wanted)
    if isinstance(result, Backend):
        return result
    kind = type(result) if isinstance(result, BackendError) else BackendError
    raise kind(f"backend {name}: {result}") from result


def _try(name: str, bundle: Bundle, wanted: _Wanted) -> Backend | MsanError:
    """The open backend, or the reason why not."""
    try:
        backend = _OPENERS[name](bundle, wanted)
    except MsanError as error:
        return error
    if not wanted.self_test:
        return backend
    try:
        pass_self_test(backend, bundle)
    except MsanError as error:
        backend.close()
        if isinstance(error, SelfTestError):
            logger.error("%s %s", name, error)
        return error
    return backend


def _if_it_wins(backend: OpenVinoBackend, bundle: Bundle, wanted: _Wanted) -> Backend | str:
    """``backend``, or why not: slower than FP32 in another on this machine, or astray. Found once, then remembered."""
    graph = _graph(bundle, CPU_PRECISIONS)
    sha256 = bundle.manifest.file(graph.path).sha256
    conditions = contest_conditions(backend.name, sha256, ("openvino", "onnxruntime"))
    verdict = recall_verdict(conditions)
    if verdict is None:
        rival = _try("ort-cpu", bundle, wanted)
        if isinstance(rival, MsanError) and backend.name == "openvino-bf16":
            rival = _try("openvino", bundle, wanted)
        if isinstance(rival, MsanError):
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


def _open_ort(bundle: Bundle, wanted: _Wanted, name: ort.OrtName, prefer: tuple[str, ...]) -> Backend:
    _require(ort.unavailable(name))
    limits = tile_limits_within(bundle.manifest, wanted.memory_bytes)
    graph = _graph(bundle, prefer)
    backend = ort.open_ort(bundle.read(graph.path), name, limits=limits)
    backend.precision = graph.precision
    return backend


def _open_openvino(bundle: Bundle, wanted: _Wanted, name: OpenVinoName) -> Backend:
    _require(openvino_unavailable(name))
    limits = tile_limits_within(bundle.manifest, wanted.memory_bytes)
    graph = _graph(bundle, CPU_PRECISIONS)
    backend = open_openvino(bundle.read(graph.path), name, limits=limits)
    backend.precision = graph.precision
    return backend


def _graph(bundle: Bundle, prefer: tuple[str, ...]) -> GraphEntry:
    graph = bundle.graph(prefer=prefer)
    if graph is None:
        raise BackendError("the bundle has no ONNX graph with uint8 pictures")
    return graph


def _open_rtx(bundle: Bundle, wanted: _Wanted) -> Backend:
    from msan_runtime.backends import rtx

    _require(rtx.unavailable())

    def opened(engine: bytes, entry: EngineEntry) -> Backend:
        kernels = cache_folder() / "kernels" / f"{hashlib.sha256(engine).hexdigest()[:32]}.kernels"
        return rtx.open_rtx(engine, entry, jit_cache=kernels)

    return _open_engine(bundle, "tensorrt-rtx", wanted, opened)


def _open_tensorrt(bundle: Bundle, wanted: _Wanted) -> Backend:
    from msan_runtime.backends import trt

    _require(trt.unavailable())
    return _open_engine(bundle, "tensorrt", wanted, trt.open_tensorrt)


def _open_engine(
    bundle: Bundle, flavour: str, wanted: _Wanted, opened: Callable[[bytes, EngineEntry], Backend]
) -> Backend:
    """The bundle's engine of ``flavour``, or one built from its graph where that does not fit this machine."""
    entry = bundle.engine(flavour)
    try:
        if entry is None:
            raise EngineUnfitError(f"the bundle has no {flavour} engine (add one with msan deploy --flavour {flavour})")
        backend = opened(bundle.read(entry.path), entry)
    except EngineUnfitError as error:
        if not wanted.rebuild:
            raise
        engine = rebuilt_engine(bundle, entry_for(bundle, flavour), this_gpu(), reason=str(error))
        entry = engine.entry
        backend = opened(engine.data, entry)
    return _bounded(backend, bundle, entry, wanted.memory_bytes)


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


_OPENERS: dict[str, Callable[[Bundle, _Wanted], Backend]] = {
    "rtx": _open_rtx,
    "tensorrt": _open_tensorrt,
    "ort-cuda": partial(_open_ort, name="ort-cuda", prefer=("fp16", "fp32")),
    "openvino-bf16": partial(_open_openvino, name="openvino-bf16"),
    "openvino": partial(_open_openvino, name="openvino"),
    "ort-cpu": partial(_open_ort, name="ort-cpu", prefer=CPU_PRECISIONS),
}
