"""The backends that the GPU checks run on: the fastest that works on this machine, or the reasons why none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.gpu import device
from tests.gpu.driver import Driver

from msan_runtime import Deblurrer

MEMORY_BYTES = 2 * 2**30
"""So that 720p is one tile for each backend: of 1 GiB ONNX Runtime is given two."""


@pytest.fixture(scope="session")
def device_name(record_testsuite_property: Callable[[str, object], None]) -> str:
    """The first of rtx, tensorrt and ort-cuda that works here."""
    found = device.first_working(device.DEVICE_BACKENDS)
    if not found.name:
        pytest.skip(f"nothing runs a GPU here: {'; '.join(found.reasons)}")
    record_testsuite_property("device backend", found.name)
    return found.name


@pytest.fixture(scope="session")
def native_name() -> str:
    """The first of rtx and tensorrt that works here."""
    found = device.first_working(device.NATIVE_BACKENDS)
    if not found.name:
        pytest.skip(f"nothing runs a native engine here: {'; '.join(found.reasons)}")
    return found.name


@pytest.fixture(scope="session")
def ort_cuda() -> None:
    """ONNX Runtime runs on a GPU here."""
    found = device.first_working(("ort-cuda",))
    if not found.name:
        pytest.skip("; ".join(found.reasons))


@pytest.fixture(scope="session")
def driver(device_name: str) -> Driver:
    """The memory of the GPU that ``device_name`` runs on."""
    del device_name
    return Driver()


@pytest.fixture(scope="module")
def on_device(device_name: str) -> Iterator[Deblurrer]:
    """The shipped network on the GPU."""
    with Deblurrer.load(backend=device_name, memory_bytes=MEMORY_BYTES) as deblurrer:
        yield deblurrer


@pytest.fixture(scope="session")
def reference() -> Iterator[Deblurrer]:
    """The shipped network in FP32 on the CPU."""
    with Deblurrer.load(backend="ort-cpu", memory_bytes=MEMORY_BYTES) as deblurrer:
        yield deblurrer
