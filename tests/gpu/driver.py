"""GPU 0 through the driver's own library, without a package: its free memory, taking it, and a fault on request."""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from msan_runtime.doctor.gpu import LIBRARY

MIB = 2**20
OUT_OF_MEMORY = 2

FAULT = b"""
.version 6.4
.target sm_75
.address_size 64

.visible .entry fault()
{
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""
"""A kernel in PTX, which the driver compiles: it writes where no memory is."""


class DriverError(Exception):
    """A call that the driver refused."""


class Driver:
    """The primary context of GPU 0: the one that CUDA's runtime, and so every backend, uses."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            OSError: if there is no driver.
            DriverError: if there is no GPU.
        """
        self._library: Any = ctypes.CDLL(LIBRARY)
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def free_bytes(self) -> int:
        """How much of the GPU's memory no process holds."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._use()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    @contextmanager
    def most_memory_taken(self, *, left_bytes: int) -> Generator[None]:
        """Hold the GPU's memory until at most ``left_bytes`` are free."""
        taken: list[int] = []
        try:
            while (spare := self.free_bytes() - left_bytes) > 0:
                address = self._allocated(min(max(spare, 2 * MIB), 512 * MIB))
                if address is None:
                    break
                taken.append(address)
            yield
        finally:
            self._use()
            for address in taken:
                self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def lose(self) -> int:
        """Break the context for good, as a fault of the device does; gives the error that it has from now on."""
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        self._use()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(FAULT))
        self._call("cuModuleGetFunction", ctypes.byref(kernel), module, ctypes.c_char_p(b"fault"))
        self._call("cuLaunchKernel", kernel, *(ctypes.c_uint(1),) * 6, ctypes.c_uint(0), None, None, None)
        return int(self._library.cuCtxSynchronize())

    def _allocated(self, size_bytes: int) -> int | None:
        """Memory, or ``None`` where no block of that size is left."""
        address = ctypes.c_uint64()
        self._use()
        status = int(self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size_bytes)))
        if status not in (0, OUT_OF_MEMORY):
            raise DriverError(f"cuMemAlloc gave error {status}")
        return None if status else address.value

    def _use(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status != 0:
            raise DriverError(f"{name} gave error {status}")
