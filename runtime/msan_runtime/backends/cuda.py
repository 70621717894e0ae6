"""What a native engine needs of CUDA, through cuda.core: one stream, staged memory, copies; and a safe GPU probe."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from msan_runtime.errors import BackendError

__all__ = ["Cuda", "GpuCuda", "Staging", "compute_capability", "device_name", "gpu_problem"]

RUNTIME = "cuda.bindings.runtime"
CORE = "cuda.core"
# cuda.core does not import without cuda.bindings: the order makes the reason name the right package.
PACKAGES = ((RUNTIME, "cuda-bindings"), (CORE, "cuda-core"))

INSUFFICIENT_DRIVER = 35
NO_DEVICE = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Staging:
    """The memory of one tensor, twice: page-locked on the host, and on the device.

    Attributes:
        host: uint8 of shape (size in bytes,); a view that must not be used after ``Cuda.close``.
        device_address: where the device's copy begins.
    """

    host: npt.NDArray[np.uint8]
    device_address: int


class Cuda(Protocol):
    """One device with one stream. All copies are asynchronous, in the order of the stream."""

    @property
    def device(self) -> str:
        """The device in words, for people."""
        ...

    @property
    def stream_handle(self) -> int:
        """The address of the stream (``cudaStream_t``)."""
        ...

    def activate(self) -> None:
        """Make the device the calling thread's current one."""
        ...

    def allocate(self, size_bytes: int) -> Staging:
        """Memory for a tensor of up to ``size_bytes``; it lives until ``close``."""
        ...

    def upload(self, staging: Staging, size_bytes: int) -> None:
        """Enqueue a copy of the first ``size_bytes`` from the host to the device."""
        ...

    def download(self, staging: Staging, size_bytes: int) -> None:
        """Enqueue a copy of the first ``size_bytes`` from the device to the host."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Errors of the device surface here."""
        ...

    def close(self) -> None:
        """Free the memory and the stream. Call ``synchronize`` before."""
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
        self._buffers: list[Any] = []
        self.device = f"{device_name(ordinal)} (compute capability {compute_capability(ordinal)})"
        self.activate()
        with _in_words("opening a CUDA stream"):
            self._stream: Any = self._core.Device(ordinal).create_stream()

    @property
    def stream_handle(self) -> int:
        return int(self._stream.handle)

    def activate(self) -> None:
        # Device objects are per thread, and other libraries move the current device: ask anew each time.
        with _in_words("using the GPU"):
            self._core.Device(self._ordinal).set_current()

    def allocate(self, size_bytes: int) -> Staging:
        with _in_words(f"allocating {size_bytes / 2**20:.0f} MiB on the GPU"):
            device = self._core.Device(self._ordinal).allocate(size_bytes, stream=self._stream)
            self._buffers.append(device)
        # Pinned memory pools need a newer driver than the rest: cuMemAllocHost works everywhere.
        with _in_words(f"allocating {size_bytes / 2**20:.0f} MiB of page-locked memory"):
            host = self._core.LegacyPinnedMemoryResource().allocate(size_bytes, stream=self._stream)
            self._buffers.append(host)
        return Staging(host=_view(int(host.handle), size_bytes), device_address=int(device.handle))

    def upload(self, staging: Staging, size_bytes: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(staging.device_address, staging.host.ctypes.data, size_bytes, kind)

    def download(self, staging: Staging, size_bytes: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(staging.host.ctypes.data, staging.device_address, size_bytes, kind)

    def synchronize(self) -> None:
        with _in_words("running on the GPU"):
            self._stream.sync()

    def close(self) -> None:
        with _in_words("releasing the GPU"):
            while self._buffers:
                self._buffers.pop().close(self._stream)
            self._stream.close()

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any) -> None:
        # cuda.core copies whole buffers of equal size only; a small tile uses the front of a large one.
        (status,) = self._runtime.cudaMemcpyAsync(target, source, size_bytes, kind, self._stream.handle)
        if int(status) != 0:
            raise BackendError(f"copying {size_bytes} bytes to or from the GPU failed: {_words(self._runtime, status)}")


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
        raise BackendError(f"{doing} failed: {error}") from error
