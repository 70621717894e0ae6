"""ONNX Runtime backends: ``ort-cpu`` and ``ort-cuda``."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from msan_runtime.backends.base import Backend, TileLimits, check_tiles
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.errors import BackendError, MissingExtraError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["PROVIDERS", "OrtBackend", "OrtName", "first_line", "open_ort", "open_session", "unavailable"]

OrtName = Literal["ort-cpu", "ort-cuda"]

PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
EXTRAS = {"ort-cpu": "cpu", "ort-cuda": "cuda"}

AREA_PX = 640 * 640
"""Largest tile. Global attention on ONNX Runtime holds a matrix of (area/64)² floats: 164 MB at this size."""


class OrtBackend(Backend):
    """Runs an ONNX graph of the image contract with ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession, name: OrtName, device: str) -> None:
        self.name = name
        self.device = device
        self.limits = TileLimits(area_px=AREA_PX)
        self._session: onnxruntime.InferenceSession | None = session

    def infer(self, tiles: PictureArray) -> PictureArray:
        check_tiles(tiles, self.limits)
        if self._session is None:
            raise BackendError(f"the {self.name} backend was closed: load the bundle again")
        try:
            outputs: Any = self._session.run([OUTPUT_NAME], {INPUT_NAME: tiles})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"{self.name} failed on tiles of shape {tiles.shape}: {first_line(error)}") from error
        return outputs[0]

    def close(self) -> None:
        self._session = None


def unavailable(name: OrtName) -> str | None:
    """Why the backend cannot run on this machine, in words; ``None`` if it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed (pip install 'msan[{EXTRAS[name]}]')"
    if name == "ort-cuda":
        return _cuda_unavailable()
    return None


def open_ort(graph: bytes, name: OrtName) -> OrtBackend:
    """A backend for the ONNX graph in ``graph``.

    Raises:
        MissingExtraError: if ONNX Runtime is not installed.
        BackendError: if the graph does not load, or another provider took its place.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnxruntime", EXTRAS[name]) from error
    provider = PROVIDERS[name]
    session = open_session(graph, provider)
    if session.get_providers()[0] != provider:
        raise BackendError(f"ONNX Runtime put {session.get_providers()[0]} in the place of {provider}")
    device = "CPU" if name == "ort-cpu" else "NVIDIA GPU"
    return OrtBackend(session, name, f"{device}, ONNX Runtime {onnxruntime.__version__}")


def open_session(graph: bytes, provider: str) -> onnxruntime.InferenceSession:
    """A session for the ONNX graph in ``graph``; ONNX Runtime itself prints nothing but fatal errors.

    Raises:
        BackendError: if the graph does not load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot load the graph: {first_line(error)}") from error


def _cuda_unavailable() -> str | None:
    import onnxruntime

    if PROVIDERS["ort-cuda"] not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA (pip install 'msan[cuda]', without the cpu extra)"
    return None


def first_line(error: Exception) -> str:
    """The first line of an exception's words, for a message; its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
