"""NVIDIA GPUs as the driver tells of them, without any package: the driver's own library is asked."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from msan_runtime.backends.cuda import driver_version

__all__ = ["Gpu", "GpuReport", "find_gpus"]

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: its name, compute capability (``8.9``) and memory."""

    name: str
    capability: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """What the driver tells.

    Attributes:
        driver: its version, empty if there is none.
        cuda: the newest release of CUDA that it runs, ``13.1``; empty if there is none.
        problem: why no GPU is found; empty if one is.
    """

    driver: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def find_gpus() -> GpuReport:
    """Ask the driver. Never raises."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return GpuReport(problem=f"no NVIDIA driver ({LIBRARY} is not there)")
    try:
        return _asked(library)
    except (AttributeError, OSError) as error:
        return GpuReport(driver=driver_version(), problem=f"the NVIDIA driver does not answer: {error}")


def _asked(library: Any) -> GpuReport:
    status = library.cuInit(0)
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if status:
        words = "it shows no GPU" if status == 100 else f"it does not start (CUDA error {status})"
        return GpuReport(driver=driver_version(), cuda=cuda, problem=f"there is an NVIDIA driver, but {words}")
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(library, ordinal) for ordinal in range(count.value))
    problem = "" if gpus else "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)"
    return GpuReport(driver=driver_version(), cuda=cuda, gpus=gpus, problem=problem)


def _gpu(library: Any, ordinal: int) -> Gpu:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    major, minor = (_attribute(library, device, which) for which in (MAJOR, MINOR))
    return Gpu(name=name.value.decode(errors="replace"), capability=f"{major}.{minor}", memory_bytes=size.value)


def _attribute(library: Any, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
