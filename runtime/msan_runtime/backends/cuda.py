"""What a native engine needs of CUDA: three streams with events between, memory, copies; and a safe GPU probe."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from msan_runtime.errors import BackendError, OutOfMemoryError

__all__ = [
    "Cuda",
    "GpuCuda",
    "Lane",
    "Staging",
    "compute_capability",
    "device_error",
    "device_name",
    "driver_version",
    "gpu_problem",
]

RUNTIME = "cuda.bindings.runtime"
CORE = "cuda.core"
# cuda.core does not import without cuda.bindings: the order makes the reason name the right package.
PACKAGES = ((RUNTIME, "cuda-bindings"), (CORE, "cuda-core"))

DRIVER = Path("/sys/module/nvidia/version")

INSUFFICIENT_DRIVER = 35
NO_DEVICE = 100


class Lane(Enum):
    """The streams of a device. Work on one lane keeps its order; between lanes only events do."""

    UPLOAD = "upload"
    COMPUTE = "compute"
    DOWNLOAD = "download"


@dataclass(frozen=True, kw_only=True, eq=False)
class Staging:
    """Memory twice: page-locked on the host, and as much on the device.

    Attributes:
        host: uint8 of shape (size in bytes,); a view that must not be used once it is freed.
        device_address: where the device's copy begins, a multiple of 256.
    """

    host: npt.NDArray[np.uint8]
    device_address: int


class Cuda(Protocol):
    """One device with three streams. Copies and events are asynchronous, in the order of their lane."""

    @property
    def device(self) -> str:
        """The device in words, for people."""
        ...

    @property
    def stream_handle(self) -> int:
        """The address of the stream (``cudaStream_t``) of ``Lane.COMPUTE``, never the default stream."""
        ...

    def activate(self) -> None:
        """Make the device the calling thread's current one."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Memory on the device, one byte or more; gives its address, a multiple of 256.

        Raises:
            OutOfMemoryError: if the device has too little left.
        """
        ...

    def allocate_staging(self, size_bytes: int) -> Staging:
        """Memory on both sides, one byte or more.

        Raises:
            OutOfMemoryError: if either side has too little left.
        """
        ...

    def free(self, device_address: int) -> None:
        """Free what ``allocate`` or ``allocate_staging`` gave. Nothing under way may use it."""
        ...

    def upload(self, staging: Staging, size_bytes: int) -> None:
        """Enqueue on ``Lane.UPLOAD`` a copy of the first ``size_bytes`` from the host to the device."""
        ...

    def download(self, staging: Staging, size_bytes: int) -> None:
        """Enqueue on ``Lane.DOWNLOAD`` a copy of the first ``size_bytes`` from the device to the host."""
        ...

    def copy(self, target_address: int, source_address: int, size_bytes: int) -> None:
        """Enqueue on ``Lane.COMPUTE`` a copy within the device."""
        ...

    def record(self, lane: Lane, *, timed: bool = False) -> object:
        """An event that happens when all that was enqueued on ``lane`` so far is done."""
        ...

    def wait(self, lane: Lane, event: object) -> None:
        """Let what is enqueued on ``lane`` from now on begin after ``event``. The host does not wait."""
        ...

    def wait_here(self, event: object) -> None:
        """Let the calling thread sleep until ``event``. Errors of the device surface here."""
        ...

    def elapsed_ms(self, start: object, end: object) -> float:
        """The time between two timed events that have happened."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Errors of the device surface here."""
        ...

    def close(self) -> None:
        """Free the memory and the streams. Call ``synchronize`` before."""
        ...


class GpuCuda:
    """``Cuda`` on an NVIDIA GPU. Every method raises BackendError where CUDA fails."""

    def __init__(self, ordinal: int = 0) -> None:
        """Open GPU number ``ordinal`` of those that CUDA shows (``CUDA_VISIBLE_DEVICES``).

        Raises:
            BackendError: if there is none, with the reason of ``gpu_problem``.
        """
        self._ordinal = ordinal
        self._core = _core()
        self._runtime: Any = import_module(RUNTIME)
        # Device address to host address, 0 where there is no host side.
        self._memory: dict[int, int] = {}
        self.device = f"{device_name(ordinal)} (compute capability {compute_capability(ordinal)})"
        self.activate()
        with _in_words("opening CUDA streams"):
            self._streams: dict[Lane, Any] = {lane: self._core.Device(ordinal).create_stream() for lane in Lane}

    @property
    def stream_handle(self) -> int:
        return int(self._streams[Lane.COMPUTE].handle)

    def activate(self) -> None:
        # Device objects are per thread, and other libraries move the current device: ask anew each time.
        with _in_words("using the GPU"):
            self._core.Device(self._ordinal).set_current()

    def allocate(self, size_bytes: int) -> int:
        # Not cuda.core's memory pools: their memory belongs to the order of one stream, and this is used on three.
        allocated = self._runtime.cudaMalloc(size_bytes)
        address = int(self._checked(allocated, f"allocating {size_bytes / 2**20:.0f} MiB on the GPU"))
        self._memory[address] = 0
        return address

    def allocate_staging(self, size_bytes: int) -> Staging:
        address = self.allocate(size_bytes)
        try:
            allocated = self._runtime.cudaMallocHost(size_bytes)
            host = int(self._checked(allocated, f"allocating {size_bytes / 2**20:.0f} MiB of page-locked memory"))
        except BackendError:
            self.free(address)
            raise
        self._memory[address] = host
        return Staging(host=_view(host, size_bytes), device_address=address)

    def free(self, device_address: int) -> None:
        host = self._memory.pop(device_address)
        if host:
            self._checked(self._runtime.cudaFreeHost(host), "freeing page-locked memory")
        self._checked(self._runtime.cudaFree(device_address), "freeing memory of the GPU")

    def upload(self, staging: Staging, size_bytes: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(Lane.UPLOAD, staging.device_address, staging.host.ctypes.data, size_bytes, kind)

    def download(self, staging: Staging, size_bytes: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(Lane.DOWNLOAD, staging.host.ctypes.data, staging.device_address, size_bytes, kind)

    def copy(self, target_address: int, source_address: int, size_bytes: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(Lane.COMPUTE, target_address, source_address, size_bytes, kind)

    def record(self, lane: Lane, *, timed: bool = False) -> object:
        # Blocking: a thread that waits leaves its core to the threads that decode and encode.
        options = self._core.EventOptions(timing_enabled=timed, blocking_sync=True)
        with _in_words("recording a CUDA event"):
            return self._streams[lane].record(options=options)

    def wait(self, lane: Lane, event: object) -> None:
        with _in_words("waiting for a CUDA event"):
            self._streams[lane].wait(event)

    def wait_here(self, event: Any) -> None:
        with _in_words("running on the GPU"):
            event.sync()

    def elapsed_ms(self, start: Any, end: Any) -> float:
        with _in_words("timing the GPU"):
            return float(end - start)

    def synchronize(self) -> None:
        with _in_words("running on the GPU"):
            for stream in self._streams.values():
                stream.sync()

    def close(self) -> None:
        while self._memory:
            self.free(next(iter(self._memory)))
        with _in_words("releasing the GPU"):
            for stream in self._streams.values():
                stream.close()

    def _copy(self, lane: Lane, target: int, source: int, size_bytes: int, kind: Any) -> None:
        # cuda.core copies whole buffers of equal size only; a small tile uses the front of a large one.
        copied = self._runtime.cudaMemcpyAsync(target, source, size_bytes, kind, self._streams[lane].handle)
        self._checked(copied, f"{lane.value} copy")

    def _checked(self, result: tuple[Any, ...], doing: str) -> Any:
        """What a call of cuda.bindings gave beside its status; ``None`` for the status alone."""
        status, *values = result
        if int(status) != 0:
            raise device_error(f"{doing} failed: {_words(self._runtime, status)}")
        return values[0] if values else None


def gpu_problem() -> str | None:
    """Why no NVIDIA GPU can be used through cuda.core here, in words; ``None`` if one can. Never raises."""
    for module, package in PACKAGES:
        try:
            import_module(module)
        except ModuleNotFoundError:
            return f"{package} is not installed (pip install cuda-core cuda-bindings)"
        except (ImportError, OSError, RuntimeError) as error:
            return f"{package} does not load: {error}"
    runtime: Any = import_module(RUNTIME)
    status, count = runtime.cudaGetDeviceCount()
    if int(status) == 0:
        return None if count else "the NVIDIA driver shows no GPU"
    return _status_in_words(runtime, status)


def device_error(message: str) -> BackendError:
    """The error for what CUDA or TensorRT said: an OutOfMemoryError if that is what it was about.

    cuda.core and TensorRT have no type for it, and their spellings differ: "out of memory",
    CUDA_ERROR_OUT_OF_MEMORY, "OutOfMemory".
    """
    out_of_memory = "outofmemory" in message.lower().replace(" ", "").replace("_", "")
    return (OutOfMemoryError if out_of_memory else BackendError)(message)


def device_name(ordinal: int = 0) -> str:
    """The name of GPU number ``ordinal``, ``NVIDIA GeForce RTX 4090``.

    Raises:
        BackendError: if there is none.
    """
    with _in_words(f"asking GPU {ordinal} for its name"):
        return str(_core().Device(ordinal).name)


def compute_capability(ordinal: int = 0) -> str:
    """The compute capability of GPU number ``ordinal`` in the manifest's form, ``8.9``.

    Raises:
        BackendError: if there is none.
    """
    with _in_words(f"asking GPU {ordinal} for its compute capability"):
        major, minor = _core().Device(ordinal).compute_capability
    return f"{major}.{minor}"


def driver_version() -> str:
    """The NVIDIA driver's version, ``580.95.05``; where Linux does not tell it, the release of CUDA that the driver was
    made for, ``CUDA 13.1``. Empty where there is no driver. Never raises.
    """
    with suppress(OSError):
        return DRIVER.read_text().strip()
    try:
        _, driver = import_module(RUNTIME).cudaDriverGetVersion()
    except Exception:  # without a driver the package may raise anything
        return ""
    return f"CUDA {_release(driver)}" if driver else ""


def _core() -> Any:
    problem = gpu_problem()
    if problem is not None:
        raise BackendError(problem)
    return import_module(CORE)


def _status_in_words(runtime: Any, status: Any) -> str:
    if int(status) == NO_DEVICE:
        return "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)"
    if int(status) != INSUFFICIENT_DRIVER:
        return f"CUDA does not start: {_words(runtime, status)}"
    _, driver = runtime.cudaDriverGetVersion()
    if not driver:
        return "no NVIDIA driver"
    _, needed = runtime.cudaRuntimeGetVersion()
    return f"the NVIDIA driver is too old: it knows CUDA {_release(driver)}, {_release(needed)} is needed. Update it"


def _release(version: int) -> str:
    """CUDA's number for a release, 12080, as people write it."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _words(runtime: Any, status: Any) -> str:
    _, text = runtime.cudaGetErrorString(status)
    return f"{text.decode()} (CUDA error {int(status)})"


def _view(address: int, size_bytes: int) -> npt.NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))


@contextmanager
def _in_words(doing: str) -> Generator[None]:
    """Turn what cuda.core raises into a BackendError that says what was being done."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:  # cuda.core's exception type is not public
        raise device_error(f"{doing} failed: {error}") from error
