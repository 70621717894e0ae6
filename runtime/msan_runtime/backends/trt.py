"""The backend ``tensorrt``: engines of classic TensorRT, bound to the kind of GPU that they were built on."""

from __future__ import annotations

from msan_runtime.backends import _trt
from msan_runtime.backends._trt import TrtBackend
from msan_runtime.backends.cuda import GpuCuda
from msan_runtime.manifest import EngineEntry

__all__ = ["open_tensorrt", "unavailable"]

MODULE = "tensorrt"
EXTRA = "tensorrt"


def unavailable() -> str | None:
    """Why the backend cannot be used on this machine, in words; ``None`` if it can. Never raises."""
    return _trt.unavailable(MODULE, EXTRA)


def open_tensorrt(engine: bytes, entry: EngineEntry) -> TrtBackend:
    """A backend for ``engine``, whose hash has been checked.

    Raises:
        BackendError: if this machine cannot run it, or another TensorRT release built it.
    """
    trt = _trt.import_trt(MODULE, EXTRA)
    return TrtBackend(trt=trt, engine=engine, entry=entry, name="tensorrt", cuda=GpuCuda())
