"""The backend ``rtx``: engines of TensorRT-RTX, which run on every RTX card that they were built for."""

from __future__ import annotations

from pathlib import Path

from msan_runtime.backends import _trt
from msan_runtime.backends._trt import TrtBackend
from msan_runtime.backends.cuda import GpuCuda
from msan_runtime.manifest import EngineEntry

__all__ = ["open_rtx", "unavailable"]

MODULE = "tensorrt_rtx"
EXTRA = "rtx"


def unavailable() -> str | None:
    """Why the backend cannot be used on this machine, in words; ``None`` if it can. Never raises."""
    return _trt.unavailable(MODULE, EXTRA)


def open_rtx(
    engine: bytes, entry: EngineEntry, *, jit_cache: Path | None = None, cuda_graphs: bool = True
) -> TrtBackend:
    """A backend for ``engine``, whose hash has been checked.

    With ``jit_cache``, a file, kernels compiled in one process are there in the next: opening is faster.
    With ``cuda_graphs`` a repeated tile shape is launched as one CUDA graph.

    Raises:
        BackendError: if this machine cannot run it, or another TensorRT-RTX release built it.
    """
    trt = _trt.import_trt(MODULE, EXTRA)
    return TrtBackend(
        trt=trt,
        engine=engine,
        entry=entry,
        name="rtx",
        cuda=GpuCuda(),
        jit_cache=jit_cache,
        cuda_graphs=cuda_graphs,
    )
