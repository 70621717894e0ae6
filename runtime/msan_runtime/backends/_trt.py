"""What both TensorRT flavours share: loading an engine, and running it on batches of tiles."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from msan_runtime.atomic import write_bytes
from msan_runtime.backends.base import Backend, TileLimits, check_tiles
from msan_runtime.backends.cuda import Cuda, Staging, gpu_problem
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.errors import BackendError
from msan_runtime.manifest import EngineEntry, Profile

__all__ = ["ATTENTION_AREA_PX", "TrtBackend", "diagnostics_in_words", "import_trt", "tile_limits", "unavailable"]

logger = logging.getLogger(__name__)

RTX = "tensorrt-rtx"
TITLES = {RTX: "TensorRT-RTX", "tensorrt": "TensorRT"}

PX_PER_KEY = 8 * 8
ATTENTION_AREA_PX = 65_504 * PX_PER_KEY
"""Largest tile: fused FP16 attention gives NaN over more than 65,504 keys, and a key stands for 8×8 pixels."""

CHANNELS = 3

DIAGNOSTICS = (
    (1, "another TensorRT-RTX release built it: build it again with msan build"),
    (2, "it was not built for this GPU: build it for this one with msan build"),
    (4, "the NVIDIA driver is too old for it: update the driver"),
    (8, "the CUDA runtime is too old for it: update TensorRT-RTX"),
    (16, "the GPU has too little memory for it: free some, or build it for smaller tiles"),
    (32, "it is damaged or no TensorRT-RTX engine: build it again with msan build"),
    (64, "CUDA failed: check the GPU with nvidia-smi"),
)
"""What each bit of TensorRT-RTX's EngineInvalidityDiagnostics means, and what to do."""

Shape = tuple[int, ...]


def unavailable(module: str, extra: str) -> str | None:
    """Why ``module``, which ``extra`` installs, cannot be used on this machine; ``None`` if it can. Never raises."""
    if find_spec(module) is None:
        return f"{module} is not installed (pip install 'msan[{extra}]')"
    return gpu_problem()


def import_trt(module: str, extra: str) -> Any:
    """The module ``tensorrt_rtx`` or ``tensorrt``.

    Raises:
        BackendError: if it is not installed, or its libraries do not load.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} does not load: {error}. Install it: pip install 'msan[{extra}]'") from error


def diagnostics_in_words(bits: int) -> str:
    """The reasons that TensorRT-RTX gives for refusing an engine, joined by semicolons."""
    known = [words for bit, words in DIAGNOSTICS if bits & bit]
    rest = bits & ~sum(bit for bit, _ in DIAGNOSTICS)
    unknown = [f"unknown diagnostic {rest}"] if rest else []
    return "; ".join(known + unknown) or "no reason given"


def tile_limits(profile: Profile) -> TileLimits:
    """The tiles that an engine of ``profile`` takes: its sizes, and no more pixels than attention bears."""
    smallest, largest = profile.min[1:], profile.max[1:]
    return TileLimits(smallest=smallest, largest=largest, area_px=min(prod(largest), ATTENTION_AREA_PX))


class TrtBackend(Backend):
    """Runs a native engine of the image contract, uint8 in and out. Its memory is allocated once, on opening."""

    def __init__(
        self, *, trt: Any, engine: bytes, entry: EngineEntry, name: str, cuda: Cuda, jit_cache: Path | None = None
    ) -> None:
        """Load an engine.

        Args:
            trt: the module ``tensorrt_rtx`` or ``tensorrt``.
            engine: the engine's bytes, their hash already checked: engines are executable content.
            entry: the manifest's description of it.
            name: of the backend.
            cuda: the device; it is this backend's from now on, and closed with it.
            jit_cache: TensorRT-RTX keeps compiled kernels in this file, in a folder that only its user
                can write. Made if it is missing, written on closing.

        Raises:
            BackendError: if the engine does not load here.
        """
        with ExitStack() as opened:
            opened.callback(cuda.close)
            self.name = name
            self.limits = tile_limits(entry.profile)
            self.device = f"{cuda.device}, {TITLES[entry.flavour]} {trt.__version__}"
            self._cuda = cuda
            self._batches = (entry.profile.min[0], entry.profile.max[0])
            cuda.activate()
            self._loaded = _Loaded(trt, engine, entry, jit_cache)
            opened.callback(self._loaded.close)
            size_bytes = entry.profile.max[0] * self.limits.area_px * CHANNELS
            self._memory: _Memory | None = _Memory(
                blurred=cuda.allocate(size_bytes), deblurred=cuda.allocate(size_bytes)
            )
            self._opened = opened.pop_all()

    def infer(self, tiles: PictureArray) -> PictureArray:
        check_tiles(tiles, self.limits)
        if self._memory is None:
            raise BackendError(f"the {self.name} backend was closed: load the bundle again")
        self._cuda.activate()
        deblurred = np.empty(tiles.shape, np.uint8)
        most = self._batches[1]
        for start in range(0, len(tiles), most):
            part = slice(start, start + most)
            self._run(self._memory, tiles[part], deblurred[part])
        return deblurred

    def close(self) -> None:
        if self._memory is None:
            return
        self._memory = None
        try:
            with self._opened:
                self._cuda.activate()
                self._cuda.synchronize()
        except BackendError as error:
            # The device failed before, and that error is on its way up: closing must not hide it.
            logger.warning("closing %s: %s", self.name, error)

    def _run(self, memory: _Memory, tiles: PictureArray, deblurred: PictureArray) -> None:
        """Run the engine once, on at most the profile's largest batch."""
        shape = (max(len(tiles), self._batches[0]), *tiles.shape[1:])
        self._loaded.prepare(shape, memory)
        memory.blurred.host[: tiles.size].reshape(tiles.shape)[...] = tiles
        try:
            self._cuda.upload(memory.blurred, prod(shape))
            self._loaded.execute(self._cuda.stream_handle)
            self._cuda.download(memory.deblurred, tiles.size)
        finally:
            # Also after a failure: the next run writes to memory that a copy may still be reading.
            self._cuda.synchronize()
        deblurred[...] = memory.deblurred.host[: tiles.size].reshape(tiles.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Memory:
    blurred: Staging
    deblurred: Staging


class _Loaded:
    """An engine with one execution context. Shapes are (batch, height, width, 3)."""

    def __init__(self, trt: Any, data: bytes, entry: EngineEntry, jit_cache: Path | None) -> None:
        self._title = TITLES[entry.flavour]
        self._log = _log_of(trt)
        self._shape: Shape | None = None
        self._config: Any = None
        self._jit: _JitCache | None = None
        _check_version(trt.__version__, entry)
        self._runtime: Any = trt.Runtime(self._log)
        if entry.flavour == RTX:
            _check_validity(trt, self._runtime, data, entry)
        self._log.errors.clear()
        self._engine: Any = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(f"{self._title} cannot load {entry.path}: {self._reason()}. Build it again: msan build")
        _check_tensors(trt, self._engine, entry)
        self._context: Any = self._new_context(trt, entry, jit_cache)
        if self._context is None:
            raise BackendError(
                f"{self._title} cannot run {entry.path}: {self._reason()}. "
                "Free GPU memory, or build it for smaller tiles"
            )

    def prepare(self, shape: Shape, memory: _Memory) -> None:
        """Make the context ready for inputs of ``shape``; does nothing if it was the last one, too.

        Raises:
            BackendError: if the engine refuses it.
        """
        if shape == self._shape:
            return
        self._shape = None
        self._log.errors.clear()
        accepted = (
            self._context.set_input_shape(INPUT_NAME, shape)
            and self._context.set_tensor_address(INPUT_NAME, memory.blurred.device_address)
            and self._context.set_tensor_address(OUTPUT_NAME, memory.deblurred.device_address)
        )
        gives = tuple(self._context.get_tensor_shape(OUTPUT_NAME))
        if not accepted or gives != shape:
            raise BackendError(
                f"the engine does not take tiles of shape {shape} (it would give {gives}): {self._reason()}. "
                "The manifest does not describe it: deploy the checkpoint again"
            )
        self._shape = shape

    def execute(self, stream_handle: int) -> None:
        """Enqueue one run.

        Raises:
            BackendError: if TensorRT refuses.
        """
        self._log.errors.clear()
        if not self._context.execute_async_v3(stream_handle):
            raise BackendError(
                f"{self._title} failed on tiles of shape {self._shape}: {self._reason()}. "
                "Free GPU memory, or choose another backend"
            )

    def close(self) -> None:
        """Release the context, then the engine, then the runtime, as TensorRT asks for."""
        self._context = None
        if self._jit is not None:
            self._jit.save()
            self._jit = None
        self._config = None
        self._engine = None
        self._runtime = None

    def _new_context(self, trt: Any, entry: EngineEntry, jit_cache: Path | None) -> Any:
        if entry.flavour != RTX:
            return self._engine.create_execution_context()
        self._config = self._engine.create_runtime_config()
        # The first run of a new tile size starts at once on general kernels, while its own are compiled.
        lazy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        self._config.dynamic_shapes_kernel_specialization_strategy = lazy
        if jit_cache is not None:
            self._jit = _JitCache(self._config, jit_cache)
        return self._engine.create_execution_context(self._config)

    def _reason(self) -> str:
        """The first error that TensorRT logged: later ones follow from it."""
        return self._log.errors[0][:300].rstrip(". ") if self._log.errors else "TensorRT gave no reason"


class _JitCache:
    """The kernels that TensorRT-RTX compiled on this machine, in a file. Losing it costs time, nothing else."""

    def __init__(self, config: Any, path: Path) -> None:
        self._path = path
        self._cache = config.create_runtime_cache()
        self._saved = _read_or_empty(path)
        if self._saved and not self._cache.deserialize(self._saved):
            logger.info("%s is of another GPU, driver or TensorRT-RTX: kernels are compiled again", path)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if kernels were added."""
        blob = self._cache.serialize()
        data = b"" if blob is None else bytes(blob)
        if data in (b"", self._saved):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path, data)
        except OSError as error:
            logger.warning("compiled kernels were not kept: %s cannot be written: %s", self._path, error.strerror)


def _read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _check_version(version: str, entry: EngineEntry) -> None:
    """Engines do not outlive the release that built them. Of a build of one release, the library decides itself."""
    title, built, here = TITLES[entry.flavour], _release(entry.flavour_version), _release(version)
    if built != here:
        raise BackendError(f"{entry.path} was built by {title} {built}, this is {here}: build it again with msan build")


def _release(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _check_validity(trt: Any, runtime: Any, data: bytes, entry: EngineEntry) -> None:
    """Ask TensorRT-RTX whether it takes the engine: deserialising says only yes or no."""
    validity, bits = runtime.get_engine_validity(data[: runtime.engine_header_size])
    reason = diagnostics_in_words(int(bits))
    if validity == trt.EngineValidity.INVALID:
        built_for = ", ".join(entry.compute_capabilities)
        raise BackendError(f"TensorRT-RTX does not take {entry.path} (compute capability {built_for}): {reason}")
    if validity == trt.EngineValidity.SUBOPTIMAL:
        logger.warning("%s runs slower here than it could: %s", entry.path, reason)


def _check_tensors(trt: Any, engine: Any, entry: EngineEntry) -> None:
    """Buffers hold one byte a value: an engine with other tensors would write past them."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    types = {name: engine.get_tensor_dtype(name) for name in names}
    expected = dict.fromkeys((INPUT_NAME, OUTPUT_NAME), trt.DataType.UINT8)
    if types != expected:
        seen = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise BackendError(
            f"{entry.path} has the tensors {seen}, not {INPUT_NAME} and {OUTPUT_NAME} in uint8. "
            "Deploy the checkpoint again"
        )


@cache
def _log_of(trt: Any) -> Any:
    """The logger that remembers errors: most TensorRT calls say only that they failed, not why.

    One for the process: TensorRT keeps using the first logger that it was given.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=16)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)
            logger.debug("%s: %s", severity, msg)

    return Log()
