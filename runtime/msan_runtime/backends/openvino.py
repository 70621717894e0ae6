"""The backends ``openvino`` and ``openvino-bf16``: ONNX graphs on the CPU through OpenVINO, in FP32 or in BF16."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from msan_runtime.backends.base import Backend, TileLimits, check_tiles
from msan_runtime.contract import INPUT_NAME, Io, PictureArray
from msan_runtime.errors import BackendError, MissingExtraError, OutOfMemoryError

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest

__all__ = ["PRECISION_HINTS", "OpenVinoBackend", "OpenVinoName", "open_openvino", "unavailable"]

OpenVinoName = Literal["openvino", "openvino-bf16"]

PRECISION_HINTS: dict[OpenVinoName, str] = {"openvino": "f32", "openvino-bf16": "bf16"}
"""Without the hint OpenVINO computes in BF16 on processors that have it, and says nothing."""

SHAPES_CACHE = 256
"""Prepared layers that OpenVINO keeps for shapes it has seen. Its own default, 5,000, costs 2 MB for every new shape
of tile without end; with 256 memory stays flat, and a shape that comes again is still not prepared again."""

OUT_OF_MEMORY_WORDS = ("bad_alloc", "out of memory", "not enough memory", "failed to allocate", "can't allocate")


class OpenVinoBackend(Backend):
    """Runs an ONNX graph of the image contract with OpenVINO."""

    def __init__(
        self, model: CompiledModel, *, limits: TileLimits, io: Io, device: str, name: OpenVinoName = "openvino"
    ) -> None:
        self.name = name
        self.limits = limits
        self.io = io
        self.device = device
        self._request: InferRequest | None = model.create_infer_request()

    def infer(self, tiles: PictureArray) -> PictureArray:
        check_tiles(tiles, self.limits)
        if self._request is None:
            raise BackendError(f"the {self.name} backend was closed: load the bundle again")
        try:
            outputs: Any = self._request.infer({INPUT_NAME: tiles}, share_inputs=True)
        except (RuntimeError, MemoryError) as error:
            raise _in_words(error, tiles) from error
        return outputs[0]

    def close(self) -> None:
        self._request = None


def unavailable(name: OpenVinoName = "openvino") -> str | None:
    """Why the backend cannot run on this machine, in words; ``None`` if it can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed (pip install 'msan[openvino]')"
    if name == "openvino-bf16" and not _computes_bf16():
        return "this processor has no BF16 arithmetic"
    return None


def open_openvino(
    graph: bytes,
    name: OpenVinoName = "openvino",
    *,
    limits: TileLimits,
    io: Io = "uint8",
    threads: int | None = None,
) -> OpenVinoBackend:
    """A backend for the ONNX graph in ``graph``.

    One compiled model takes tiles of every shape: a model compiled for one fixed shape is 0 to 3 % faster
    from tiles of 128×128 on, but costs 0.3 to 0.7 seconds for each shape, against 0.02 here.

    Args:
        graph: of FP32: its bytes, their hash already checked.
        name: ``openvino`` computes it in FP32; ``openvino-bf16`` in BF16, with sums in FP32.
        limits: tiles that may be run.
        io: of the graph.
        threads: that compute; left to OpenVINO, which takes the physical cores, if ``None``.

    Raises:
        MissingExtraError: if OpenVINO is not installed.
        BackendError: if the graph does not load.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("openvino", "openvino") from error
    hint = PRECISION_HINTS[name]
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "CPU_RUNTIME_CACHE_CAPACITY": str(SHAPES_CACHE)}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        model = core.compile_model(core.read_model(graph, b""), "CPU", options)
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot load the graph: {_reason(error)}") from error
    release = openvino.__version__.partition("-")[0]
    device = f"CPU, OpenVINO {release}" + (", BF16" if name == "openvino-bf16" else "")
    return OpenVinoBackend(model, limits=limits, io=io, device=device, name=name)


def _computes_bf16() -> bool:
    """Whether the processor does; OpenVINO emulates it on others, slowly."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _in_words(error: Exception, tiles: PictureArray) -> BackendError:
    failed = f"openvino failed on tiles of shape {tiles.shape}: {_reason(error)}"
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS):
        return OutOfMemoryError(failed)
    return BackendError(failed)


def _reason(error: Exception) -> str:
    """The first line of OpenVINO's words that does not name one of its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = (line for line in lines if line and not line.startswith("Exception from"))
    return next(told, type(error).__name__)[:300]
