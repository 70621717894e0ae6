"""A native engine, ready to run: loaded and proved, with a context, a tile shape and the device memory for it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from msan_runtime.backends.cuda import Cuda, device_error
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME
from msan_runtime.errors import BackendError, EngineUnfitError, OutOfMemoryError
from msan_runtime.manifest import EngineEntry
from msan_runtime.store import keep, recall, trim

__all__ = ["TITLES", "NativeEngine", "Shape", "diagnostics_in_words"]

logger = logging.getLogger(__name__)

RTX = "tensorrt-rtx"
TITLES = {RTX: "TensorRT-RTX", "tensorrt": "TensorRT"}

ALIGNMENT_BYTES = 256
"""TensorRT wants its memory to begin at a multiple of this."""

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

BUILT_AGAIN = 1 | 2 | 32
"""The bits that an engine built here and now would not have."""

KERNELS_BYTES = 512 << 20
"""Of all files of compiled kernels together; those used longest ago make room."""

Shape = tuple[int, ...]
"""(batch, height, width, 3)."""


def diagnostics_in_words(bits: int) -> str:
    """The reasons that TensorRT-RTX gives for refusing an engine, joined by semicolons."""
    known = [words for bit, words in DIAGNOSTICS if bits & bit]
    rest = bits & ~sum(bit for bit, _ in DIAGNOSTICS)
    unknown = [f"unknown diagnostic {rest}"] if rest else []
    return "; ".join(known + unknown) or "no reason given"


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """One block on the device: the pictures in, the pictures out, and what TensorRT keeps between its layers."""

    address: int
    picture_bytes: int
    scratch_bytes: int

    @property
    def blurred_address(self) -> int:
        return self.address

    @property
    def deblurred_address(self) -> int:
        return self.address + _aligned(self.picture_bytes)

    @property
    def scratch_address(self) -> int:
        return self.address + 2 * _aligned(self.picture_bytes)


class NativeEngine:
    """An engine of the image contract, uint8 in and out, with one execution context.

    It belongs to one stream. Its device memory is as large as the tiles so far needed, not as the profile
    allows, so that a small device can still run small tiles.
    """

    def __init__(
        self,
        *,
        trt: Any,
        engine: bytes,
        entry: EngineEntry,
        cuda: Cuda,
        jit_cache: Path | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Load an engine; the arguments are ``TrtBackend``'s.

        Raises:
            OutOfMemoryError: if the device's memory does not suffice for the weights.
            BackendError: if the engine does not load here.
        """
        self._trt = trt
        self._entry = entry
        self._cuda = cuda
        self._title = TITLES[entry.flavour]
        self._log = _log_of(trt)
        self._shape: Shape | None = None
        self._memory: _Memory | None = None
        self._jit: _JitCache | None = None
        _check_version(trt.__version__, entry)
        self._runtime: Any = trt.Runtime(self._log)
        if entry.flavour == RTX:
            _check_validity(trt, self._runtime, engine, entry)
        self._log.errors.clear()
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise _unfit(
                device_error(f"{self._title} cannot load {entry.path}: {self._reason()}. Build it again: msan build")
            )
        _check_tensors(trt, self._engine, entry)
        self._config: Any = self._configured(jit_cache, cuda_graphs)
        self._context: Any = self._new_context()

    @property
    def blurred_address(self) -> int:
        """Where a run finds its pictures; may change in ``prepare``."""
        return self._held.blurred_address

    @property
    def deblurred_address(self) -> int:
        """Where a run leaves its pictures; may change in ``prepare``."""
        return self._held.deblurred_address

    def prepare(self, shape: Shape) -> None:
        """Make the engine ready for inputs of ``shape``; does nothing if it was the last one, too.

        Raises:
            OutOfMemoryError: if the device's memory does not suffice for it; ``release_memory`` then.
            BackendError: if the engine refuses it.
        """
        if shape == self._shape:
            return
        self._shape = None
        # Runs under way use the memory that may be replaced here.
        self._cuda.synchronize()
        self._log.errors.clear()
        self._hold(shape, self._set_shape(shape))
        self._bind(shape)
        self._shape = shape

    def execute(self) -> None:
        """Enqueue one run of the prepared shape on the device's compute lane.

        Raises:
            OutOfMemoryError: if the device's memory does not suffice.
            BackendError: if TensorRT refuses.
        """
        self._log.errors.clear()
        if not self._context.execute_async_v3(self._cuda.stream_handle):
            raise device_error(
                f"{self._title} failed on tiles of shape {self._shape}: {self._reason()}. "
                "Free GPU memory, or choose another backend"
            )

    def release_memory(self) -> None:
        """Give the device's memory back; the next ``prepare`` takes what it needs. Nothing may be under way."""
        self._shape = None
        # The CUDA graphs that a context captured hold the addresses: they go together.
        self._context = None
        if self._memory is not None:
            memory, self._memory = self._memory, None
            self._cuda.free(memory.address)

    def close(self) -> None:
        """Release the context, then the engine, then the runtime, as TensorRT asks for."""
        self._context = None
        if self._jit is not None:
            self._jit.save()
            self._jit = None
        self._config = None
        self._engine = None
        self._runtime = None

    @property
    def _held(self) -> _Memory:
        if self._memory is None:
            raise BackendError(f"{self._title} was not prepared for a tile shape")
        return self._memory

    def _set_shape(self, shape: Shape) -> int:
        """Tell the context; gives the scratch memory in bytes that ``shape`` needs."""
        if self._context is None:
            self._context = self._new_context()
        accepted = self._context.set_input_shape(INPUT_NAME, shape)
        gives = tuple(self._context.get_tensor_shape(OUTPUT_NAME))
        if not accepted or gives != shape:
            raise BackendError(
                f"the engine does not take tiles of shape {shape} (it would give {gives}): {self._reason()}. "
                "The manifest does not describe it: deploy the checkpoint again"
            )
        return int(self._context.update_device_memory_size_for_shapes())

    def _hold(self, shape: Shape, scratch_bytes: int) -> None:
        """Have memory for ``shape``: what is there if it suffices, else a new block, no smaller in any part."""
        picture_bytes = prod(shape)
        before = self._memory
        if before is not None:
            if picture_bytes <= before.picture_bytes and scratch_bytes <= before.scratch_bytes:
                return
            self.release_memory()
            self._set_shape(shape)
            picture_bytes = max(picture_bytes, before.picture_bytes)
            scratch_bytes = max(scratch_bytes, before.scratch_bytes)
        address = self._cuda.allocate(2 * _aligned(picture_bytes) + _aligned(scratch_bytes))
        self._memory = _Memory(address=address, picture_bytes=picture_bytes, scratch_bytes=scratch_bytes)

    def _bind(self, shape: Shape) -> None:
        """Tell the context where its memory is."""
        memory = self._held
        self._context.set_device_memory(memory.scratch_address, _aligned(memory.scratch_bytes))
        if not (
            self._context.set_tensor_address(INPUT_NAME, memory.blurred_address)
            and self._context.set_tensor_address(OUTPUT_NAME, memory.deblurred_address)
        ):
            raise BackendError(f"{self._title} refuses memory for tiles of shape {shape}: {self._reason()}")

    def _new_context(self) -> Any:
        """A context without memory of its own: TensorRT would take enough for the profile's largest tile."""
        self._log.errors.clear()
        how = self._config or self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(how)
        if context is None:
            raise device_error(
                f"{self._title} cannot run {self._entry.path}: {self._reason()}. Free GPU memory, or build it again"
            )
        return context

    def _configured(self, jit_cache: Path | None, cuda_graphs: bool) -> Any:
        """TensorRT-RTX's settings for contexts; ``None`` for classic TensorRT, which compiles nothing here."""
        if self._entry.flavour != RTX:
            return None
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # The first run of a new tile size starts at once on general kernels, while its own are compiled. EAGER
        # would stop at each new picture size of a folder; tiles of one plan are equal, so little is compiled twice.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        # Captured by TensorRT-RTX itself once a shape's own kernels are there: one launch for some hundred.
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategies.DISABLED
        about = {
            "for": self._cuda.device,
            "compiled by": f"{self._title} {trt.__version__}",
            "engine": self._entry.path,
        }
        self._jit = _JitCache(config, jit_cache, about)
        return config

    def _reason(self) -> str:
        """The first error that TensorRT logged: later ones follow from it."""
        return self._log.errors[0][:300].rstrip(". ") if self._log.errors else "TensorRT gave no reason"


def _aligned(size_bytes: int) -> int:
    """``size_bytes`` rounded up, and never 0: TensorRT refuses to run without an address."""
    return max(-(-size_bytes // ALIGNMENT_BYTES), 1) * ALIGNMENT_BYTES


class _JitCache:
    """The kernels that TensorRT-RTX compiled on this machine. Losing them costs time, nothing else.

    Contexts share them in memory; with ``path`` they are kept in that file for other processes.
    """

    def __init__(self, config: Any, path: Path | None, about: Mapping[str, str]) -> None:
        self._path = path
        self._about = about
        self._cache = config.create_runtime_cache()
        # What is damaged never reaches TensorRT-RTX: it would be read by code that trusts it.
        self._saved = b"" if path is None else recall(path) or b""
        if self._saved and not self._cache.deserialize(self._saved):
            logger.warning("%s is of another GPU, driver or TensorRT-RTX: kernels are compiled again", path)
            self._saved = b""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file, if there is to be one and kernels were added, and make room for it."""
        if self._path is None:
            return
        blob = self._cache.serialize()
        data = b"" if blob is None else bytes(blob)
        if data in (b"", self._saved):
            return
        if len(data) > KERNELS_BYTES:
            logger.warning("compiled kernels were not kept: %d MB of them are too many", len(data) >> 20)
        elif keep(self._path, data, self._about):
            trim(self._path.parent, KERNELS_BYTES)


def _check_version(version: str, entry: EngineEntry) -> None:
    """Engines do not outlive the release that built them. Of a build of one release, the library decides itself."""
    title, built, here = TITLES[entry.flavour], _release(entry.flavour_version), _release(version)
    if built != here:
        raise EngineUnfitError(
            f"{entry.path} was built by {title} {built}, this is {here}: build it again with msan build"
        )


def _unfit(error: BackendError) -> BackendError:
    """An engine that does not load may be replaced by one built here; not where memory ran out."""
    return error if isinstance(error, OutOfMemoryError) else EngineUnfitError(str(error))


def _release(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _check_validity(trt: Any, runtime: Any, data: bytes, entry: EngineEntry) -> None:
    """Ask TensorRT-RTX whether it takes the engine: deserialising says only yes or no."""
    validity, bits = runtime.get_engine_validity(data[: runtime.engine_header_size])
    reason = diagnostics_in_words(int(bits))
    if validity == trt.EngineValidity.INVALID:
        built_for = ", ".join(entry.compute_capabilities)
        kind = EngineUnfitError if int(bits) & BUILT_AGAIN and not int(bits) & ~BUILT_AGAIN else BackendError
        raise kind(f"TensorRT-RTX does not take {entry.path} (compute capability {built_for}): {reason}")
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
