"""Which backend runs a bundle on this machine, and why, in words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle
from msan_runtime.errors import BackendError, MsanError

__all__ = ["BACKENDS", "BackendName", "Selection", "select_backend"]

BackendName = Literal["rtx", "tensorrt", "ort-cuda", "ort-cpu"]

BACKENDS: tuple[str, ...] = get_args(BackendName)
"""In order of preference: fastest first."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The backend that was taken, and why each one before it was passed over."""

    backend: Backend
    passed_over: tuple[str, ...]


def select_backend(bundle: Bundle, name: str = "auto") -> Selection:
    """Open the backend called ``name``; for ``auto`` the first of ``BACKENDS`` that works here.

    With ``auto`` the backends passed over and their reasons are logged as one warning: a machine
    with an NVIDIA GPU that ends up on the CPU says why. A name means that backend or an error.

    Raises:
        BackendError: for an unknown name, or if the backend asked for (or every one) cannot run.
    """
    if name != "auto" and name not in BACKENDS:
        raise BackendError(f"no backend {name!r}. There are: auto, {', '.join(BACKENDS)}")
    passed_over: list[str] = []
    for candidate in BACKENDS if name == "auto" else (name,):
        result = _try(candidate, bundle)
        if isinstance(result, Backend):
            if passed_over:
                logger.warning("running on %s, since %s", result.name, "; ".join(passed_over))
            return Selection(backend=result, passed_over=tuple(passed_over))
        passed_over.append(f"{candidate}: {result}")
    if name == "auto":
        raise BackendError("no backend can run this bundle here. " + "; ".join(passed_over))
    raise BackendError(f"backend {passed_over[0]}")


def _try(name: str, bundle: Bundle) -> Backend | str:
    """The open backend, or the reason why not."""
    try:
        return _OPENERS[name](bundle)
    except MsanError as error:
        return str(error)


def _open_ort(bundle: Bundle, name: ort.OrtName, prefer: tuple[str, ...]) -> Backend:
    _require(ort.unavailable(name))
    graph = bundle.graph(prefer=prefer)
    if graph is None:
        raise BackendError("the bundle has no ONNX graph with uint8 pictures")
    return ort.open_ort(bundle.read(graph.path), name)


def _open_ort_cpu(bundle: Bundle) -> Backend:
    # A CPU computes FP16 graphs in FP32 anyway: the FP32 graph is as fast and more exact.
    return _open_ort(bundle, "ort-cpu", ("fp32", "fp16"))


def _open_ort_cuda(bundle: Bundle) -> Backend:
    return _open_ort(bundle, "ort-cuda", ("fp16", "fp32"))


def _open_rtx(bundle: Bundle) -> Backend:
    from msan_runtime.backends import rtx

    _require(rtx.unavailable())
    entry = bundle.engine("tensorrt-rtx")
    if entry is None:
        raise BackendError("the bundle has no TensorRT-RTX engine (add one with msan deploy --gpu)")
    return rtx.open_rtx(bundle.read(entry.path), entry)


def _open_tensorrt(bundle: Bundle) -> Backend:
    from msan_runtime.backends import trt

    _require(trt.unavailable())
    entry = bundle.engine("tensorrt")
    if entry is None:
        raise BackendError("the bundle has no TensorRT engine (add one with msan deploy --flavour tensorrt)")
    return trt.open_tensorrt(bundle.read(entry.path), entry)


def _require(problem: str | None) -> None:
    if problem is not None:
        raise BackendError(problem)


_OPENERS: dict[str, Callable[[Bundle], Backend]] = {
    "rtx": _open_rtx,
    "tensorrt": _open_tensorrt,
    "ort-cuda": _open_ort_cuda,
    "ort-cpu": _open_ort_cpu,
}
