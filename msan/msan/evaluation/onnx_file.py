"""An ONNX file made by ``msan export``, opened as the runtime opens a bundle's graph: same sessions, same tiles."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle
from msan_runtime.contract import CONTRACT_VERSION
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import BackendError, MissingExtraError, MsanError
from msan_runtime.manifest import Manifest
from msan_runtime.memory import tile_limits_within
from msan_runtime.select import Selection

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxFileError", "open_onnx_file"]

NAMES: tuple[ort.OrtName, ...] = ("ort-cuda", "ort-cpu")
"""In order of preference."""


class OnnxFileError(MsanError):
    """A file that is not an ONNX graph of ``msan export``."""


def open_onnx_file(path: Path, backend: str = "auto") -> Deblurrer:
    """Open the ONNX file at ``path`` in ONNX Runtime.

    Args:
        path: made by ``msan export``, of uint8 or float32 pictures.
        backend: ``ort-cuda``, ``ort-cpu``, or ``auto``: the first of these that works here.

    Returns:
        A deblurrer whose ``passed_over`` says why ``ort-cuda`` is not used; its bundle holds no file.

    Raises:
        OnnxFileError: if the file cannot be read, is not ONNX, or of another maker or image contract.
        BackendError: if the backend is another or cannot run here.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    if backend not in ("auto", *NAMES):
        raise BackendError(f"an ONNX file runs on {' or '.join(NAMES)}, not {backend}. Choose one of these or auto")
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "cpu")
    session, selection = _opened(path, NAMES if backend == "auto" else (backend,))
    return Deblurrer(Bundle(folder=path.parent, manifest=_manifest(path, session)), selection)


def _opened(path: Path, names: tuple[str, ...]) -> tuple[onnxruntime.InferenceSession, Selection]:
    """A session on the first backend of ``names`` that works, as a selection of the runtime."""
    graph = _read(path)
    passed_over: list[str] = []
    for name in NAMES:
        if name not in names:
            continue
        problem = ort.unavailable(name)
        if problem is None:
            session = _session(graph, name, path)
            if session.get_providers()[0] == ort.PROVIDERS[name]:
                return session, Selection(backend=_backend(session, name, path), passed_over=tuple(passed_over))
            problem = f"ONNX Runtime put {session.get_providers()[0]} in its place"
        passed_over.append(f"{name}: {problem}")
    raise BackendError(f"no backend can run {path} here. {'; '.join(passed_over)}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OnnxFileError(f"cannot read {path}: {error.strerror}") from error


def _session(graph: bytes, name: ort.OrtName, path: Path) -> onnxruntime.InferenceSession:
    try:
        return ort.open_session(graph, ort.PROVIDERS[name])
    except BackendError as error:
        raise OnnxFileError(f"{path} cannot be used: {error}") from error


def _metadata(session: onnxruntime.InferenceSession) -> Mapping[str, str]:
    return session.get_modelmeta().custom_metadata_map


def _manifest(path: Path, session: onnxruntime.InferenceSession) -> Manifest:
    """What the runtime asks of a bundle; there are no files in it that could be opened again."""
    contract = _metadata(session).get("msan.contract_version")
    if contract != str(CONTRACT_VERSION):
        raise OnnxFileError(
            f"{path} was not made by this msan export (image contract {contract}, not {CONTRACT_VERSION}). "
            "Export the checkpoint"
        )
    return Manifest(
        name=path.stem,
        spec={},
        contract_version=CONTRACT_VERSION,
        graphs=(),
        engines=(),
        files=(),
        versions={},
        provenance={},
        attention=_metadata(session).get("msan.attention", "global"),
    )


def _backend(session: onnxruntime.InferenceSession, name: ort.OrtName, path: Path) -> Backend:
    import onnxruntime

    device = f"{'CPU' if name == 'ort-cpu' else 'NVIDIA GPU'}, ONNX Runtime {onnxruntime.__version__}"
    io = _metadata(session).get("msan.io")
    if io not in ("uint8", "float32"):
        raise OnnxFileError(f"{path} was not made by msan export: it carries no msan.io. Export the checkpoint")
    limits = tile_limits_within(_manifest(path, session))
    return ort.OrtBackend(session, name, device, limits=limits, io=io)
