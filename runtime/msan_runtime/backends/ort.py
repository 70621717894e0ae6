"""ONNX Runtime backends: ``ort-cpu`` and ``ort-cuda``."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from msan_runtime.backends.base import Backend, TileLimits, check_tiles
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, Io, PictureArray
from msan_runtime.errors import BackendError, MissingExtraError, OutOfMemoryError
from msan_runtime.machine import compute_threads, is_bound

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["PROVIDERS", "OrtBackend", "OrtName", "first_line", "open_ort", "open_session", "unavailable"]

OrtName = Literal["ort-cpu", "ort-cuda"]

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
EXTRAS = {"ort-cpu": "cpu", "ort-cuda": "cuda"}

SMALL_TILE_PX = 64 * 64
TOGETHER_PX = 8 * SMALL_TILE_PX
MOST_TOGETHER = 16
"""Tiles of more than 64×64 px are no faster in one batch than one by one (benchmarks/serve.py)."""

CUDA_ATTENTION_RELEASE = (1, 25)
"""The first whose CUDA provider has the Attention of opset 23."""

OUT_OF_MEMORY = (
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "out_of_memory",
    "alloc_failed",
    "allocation_failed",
    "smaller than requested bytes",
)
"""What ONNX Runtime, CUDA, cuBLAS and cuDNN say when memory does not suffice, in lower case."""


class OrtBackend(Backend):
    """Runs an ONNX graph of the image contract with ONNX Runtime."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        name: OrtName,
        device: str,
        *,
        limits: TileLimits,
        io: Io = "uint8",
    ) -> None:
        self.name = name
        self.device = device
        self.limits = limits
        self.io = io
        self._session: onnxruntime.InferenceSession | None = session

    def infer(self, tiles: PictureArray) -> PictureArray:
        check_tiles(tiles, self.limits)
        if self._session is None:
            raise BackendError(f"the {self.name} backend was closed: load the bundle again")
        try:
            outputs: Any = self._session.run([OUTPUT_NAME], {INPUT_NAME: tiles})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _failure(error)(f"{self.name} failed on tiles of shape {tiles.shape}: {first_line(error)}") from error
        return outputs[0]

    def batch_size(self, height: int, width: int) -> int:
        if self.name != "ort-cpu" or height * width > SMALL_TILE_PX:
            return 1
        return min(TOGETHER_PX // (height * width), MOST_TOGETHER)

    def close(self) -> None:
        self._session = None


def unavailable(name: OrtName) -> str | None:
    """Why the backend cannot run on this machine, in words; ``None`` if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed (pip install 'msan[{EXTRAS[name]}]')"
    if name == "ort-cuda":
        return _cuda_unavailable()
    return None


def open_ort(graph: bytes, name: OrtName, *, limits: TileLimits, io: Io = "uint8") -> OrtBackend:
    """A backend for the ONNX graph in ``graph``, of pictures of ``io``, which is given tiles within ``limits``.

    Raises:
        MissingExtraError: if ONNX Runtime is not installed.
        BackendError: if ONNX Runtime or the graph does not load, or another provider took its place.
    """
    onnxruntime = _import_onnxruntime(name)
    provider = PROVIDERS[name]
    session = open_session(graph, provider)
    if session.get_providers()[0] != provider:
        raise BackendError(f"ONNX Runtime put {session.get_providers()[0]} in the place of {provider}")
    device = "CPU" if name == "ort-cpu" else "NVIDIA GPU"
    return OrtBackend(session, name, f"{device}, ONNX Runtime {onnxruntime.__version__}", limits=limits, io=io)


def open_session(graph: bytes, provider: str) -> onnxruntime.InferenceSession:
    """A session for the ONNX graph in ``graph``; ONNX Runtime itself prints nothing but fatal errors.

    Raises:
        BackendError: if the graph does not load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if is_bound():
        # By itself ONNX Runtime takes all cores, also those that this process was not given.
        options.intra_op_num_threads = compute_threads()
    # It would hold all tensors of a run side by side in one block, for each shape of tiles anew: twice the memory
    # for the same time. The arena without it is reused by tiles of any shape.
    options.enable_mem_pattern = False
    # What ONNX Runtime makes of Q/DQ pairs is slower here, and of FP8 it is wrong: 33 dB where the graph says 54.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot load the graph: {first_line(error)}") from error


def _import_onnxruntime(name: OrtName) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            raise MissingExtraError("onnxruntime", EXTRAS[name]) from error
        raise _damaged(first_line(error)) from error
    except (ImportError, OSError) as error:
        raise _damaged(first_line(error)) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise _damaged("it has lost files, as when onnxruntime or onnxruntime-gpu was uninstalled beside the other")
    return onnxruntime


def _damaged(how: str) -> BackendError:
    return BackendError(f"onnxruntime does not load: {how}. See what is wrong with: msan doctor")


def _cuda_unavailable() -> str | None:
    try:
        onnxruntime = _import_onnxruntime("ort-cuda")
    except BackendError as error:
        return str(error)
    if PROVIDERS["ort-cuda"] not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA (pip install 'msan[cuda]', without the cpu extra)"
    release = str(onnxruntime.__version__)
    if tuple(int(part) for part in release.split(".")[:2]) < CUDA_ATTENTION_RELEASE:
        return f"ONNX Runtime {release} computes attention on the CPU (pip install --upgrade 'msan[cuda]')"
    return None


def _failure(error: Exception) -> type[BackendError]:
    words = str(error).lower()
    memory = isinstance(error, MemoryError) or any(sign in words for sign in OUT_OF_MEMORY)
    return OutOfMemoryError if memory else BackendError


def first_line(error: Exception) -> str:
    """The first line of an exception's words, for a message; its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
