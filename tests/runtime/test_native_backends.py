"""The native backends without a GPU: probes, words, and the logic around an engine that a fake computes."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import re
import sys
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msan_runtime.backends import cuda, rtx, trt
from msan_runtime.backends._engine import diagnostics_in_words
from msan_runtime.backends._trt import ATTENTION_AREA_PX, TrtBackend, tile_limits
from msan_runtime.backends.cuda import GpuCuda, Lane, Staging, device_error, gpu_problem
from msan_runtime.bundle import open_bundle
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.engines.kept import engines_folder
from msan_runtime.engines.rebuilding import Target
from msan_runtime.errors import BackendError, ContractError, EngineUnfitError, OutOfMemoryError
from msan_runtime.manifest import EngineEntry, Profile, describe_file, load_manifest, save_manifest
from msan_runtime.memory import tile_limits_within
from msan_runtime.select import select_backend
from msan_runtime.store import kept_in, recall
from msan_runtime.targets import Capability

PROFILE = Profile(min=(1, 16, 16), opt=(2, 32, 32), max=(2, 48, 64))
ONE_BY_ONE = Profile(min=(1, 16, 16), opt=(1, 32, 32), max=(1, 48, 64))


def engine_entry(**changes: Any) -> EngineEntry:
    values: dict[str, Any] = {
        "path": "engine.rtx",
        "flavour": "tensorrt-rtx",
        "flavour_version": "1.7.1.116",
        "compute_capabilities": ("8.6", "8.9"),
        "profile": PROFILE,
        "precision": "fp16",
        "layer_types": {},
        "graph": "graph.onnx",
    }
    return EngineEntry(**{**values, **changes})


def random_tiles(*shape: int) -> PictureArray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


FREED = 0xEE


class FakeEvent:
    def __init__(self, lane: Lane, timed: bool) -> None:
        self.lane = lane
        self.timed = timed
        self.happened_ms: float | None = None


class Step:
    """Something enqueued on a lane; it cannot begin before ``after``."""

    def __init__(self, act: Callable[[], object], after: FakeEvent | None = None) -> None:
        self.act = act
        self.after = after

    @property
    def ready(self) -> bool:
        return self.after is None or self.after.happened_ms is not None


class FakeCuda:
    """A device in host memory whose lanes run as unhelpfully as a real device may.

    Without ``chance`` nothing happens before somebody waits for it, and then no more than that event needs:
    a copy that lacks a wait comes too early, a buffer filled again too soon is uploaded late. With
    ``chance`` the lanes also move by themselves, at random moments.
    """

    device = "fake GPU"
    stream_handle = 7
    run_ms = 5.0

    def __init__(self, chance: Random | None = None) -> None:
        self.chance = chance
        self.capacity_bytes = 2**30
        self.clock_ms = 0.0
        self.events: list[str] = []
        self.lanes: dict[Lane, deque[Step]] = {lane: deque() for lane in Lane}
        self.live: dict[int, npt.NDArray[np.uint8]] = {}
        self.freed: list[npt.NDArray[np.uint8]] = []

    def activate(self) -> None: ...

    def allocate(self, size_bytes: int) -> int:
        if self.live_bytes + size_bytes > self.capacity_bytes:
            raise OutOfMemoryError(f"no {size_bytes} bytes left")
        self.events.append("allocate")
        memory = aligned_zeros(size_bytes)
        self.live[memory.ctypes.data] = memory
        return memory.ctypes.data

    def allocate_staging(self, size_bytes: int) -> Staging:
        return Staging(device_address=self.allocate(size_bytes), host=np.zeros(size_bytes, np.uint8))

    def free(self, device_address: int) -> None:
        memory = self.live.pop(device_address)
        memory[:] = FREED
        self.freed.append(memory)

    @property
    def live_bytes(self) -> int:
        return sum(memory.size for memory in self.live.values())

    @property
    def pending(self) -> int:
        return sum(map(len, self.lanes.values()))

    def view(self, address: int, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Memory that is still allocated, else the test fails as a device would."""
        for start, memory in self.live.items():
            if start <= address and address + size_bytes <= start + memory.size:
                return memory[address - start : address - start + size_bytes]
        raise AssertionError(f"illegal address {address}")

    def upload(self, staging: Staging, size_bytes: int) -> None:
        def act() -> None:
            self.view(staging.device_address, size_bytes)[:] = staging.host[:size_bytes]

        self.enqueue(Lane.UPLOAD, act)

    def download(self, staging: Staging, size_bytes: int) -> None:
        def act() -> None:
            staging.host[:size_bytes] = self.view(staging.device_address, size_bytes)

        self.enqueue(Lane.DOWNLOAD, act)

    def copy(self, target_address: int, source_address: int, size_bytes: int) -> None:
        def act() -> None:
            self.view(target_address, size_bytes)[:] = self.view(source_address, size_bytes)

        self.enqueue(Lane.COMPUTE, act)

    def enqueue(self, lane: Lane, act: Callable[[], object], after: FakeEvent | None = None) -> None:
        self.lanes[lane].append(Step(act, after))
        if self.chance is not None:
            for _ in range(self.chance.randrange(4)):
                self.advance(self.chance.choice(list(Lane)))

    def record(self, lane: Lane, *, timed: bool = False) -> FakeEvent:
        event = FakeEvent(lane, timed)

        def act() -> None:
            event.happened_ms = self.clock_ms

        self.enqueue(lane, act)
        return event

    def wait(self, lane: Lane, event: Any) -> None:
        self.enqueue(lane, lambda: None, after=event)

    def wait_here(self, event: Any) -> None:
        lane = self.lanes[event.lane]
        while event.happened_ms is None:
            if lane[0].after is not None:
                self.wait_here(lane[0].after)
            self.advance(event.lane)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        assert start.timed
        assert end.timed
        return end.happened_ms - start.happened_ms

    def advance(self, lane: Lane) -> bool:
        """Do the next step of a lane, if it may begin."""
        steps = self.lanes[lane]
        if not steps or not steps[0].ready:
            return False
        steps.popleft().act()
        return True

    def drain(self, lane: Lane) -> int:
        """Let one lane alone run on; gives how many steps are left because they wait for other lanes."""
        while self.advance(lane):
            pass
        return len(self.lanes[lane])

    def synchronize(self) -> None:
        self.events.append("synchronize")
        while self.pending:
            before = self.pending
            for lane in (Lane.DOWNLOAD, Lane.COMPUTE, Lane.UPLOAD):
                self.drain(lane)
            assert self.pending < before, "the lanes wait for each other for ever"

    def close(self) -> None:
        self.events.append("cuda closed")


def aligned_zeros(size_bytes: int) -> npt.NDArray[np.uint8]:
    memory = np.zeros(size_bytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size_bytes]


class FakeContext:
    """Computes 255 - x on whatever the addresses point at, in the order of the compute lane.

    With CUDA graphs it is as naive as can be: what it captured at a shape's second run is replayed from then
    on, whatever the addresses have become.
    """

    def __init__(self, fake: FakeTrt) -> None:
        self.fake = fake
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.runs: Counter[tuple[int, ...]] = Counter()
        self.graphs: dict[tuple[int, ...], Callable[[], None]] = {}
        weakref.finalize(self, fake.cuda.events.append, "context released")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == INPUT_NAME
        self.shape = shape
        self.fake.cuda.events.append(f"shape {shape}")
        return self.fake.takes_shapes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == OUTPUT_NAME
        return self.shape

    def update_device_memory_size_for_shapes(self) -> int:
        return self.fake.scratch_bytes(self.shape)

    def set_device_memory(self, address: int, size_bytes: int) -> None:
        assert address % 256 == 0
        self.scratch = (address, size_bytes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == FakeCuda.stream_handle
        if self.fake.refusal:
            self.fake.logger.log(self.fake.ILogger.Severity.ERROR, self.fake.refusal)
            return False
        assert self.scratch[1] >= max(self.fake.scratch_bytes(self.shape), 1)
        self.fake.cuda.events.append(f"execute {self.shape[0]}")
        self.fake.cuda.enqueue(Lane.COMPUTE, self.launch())
        return True

    def launch(self) -> Callable[[], None]:
        self.runs[self.shape] += 1
        if self.fake.graphs and self.runs[self.shape] >= 2:
            return self.graphs.setdefault(self.shape, self.kernels())
        return self.kernels()

    def kernels(self) -> Callable[[], None]:
        cuda, size = self.fake.cuda, int(np.prod(self.shape))
        source, target = self.addresses[INPUT_NAME], self.addresses[OUTPUT_NAME]
        scratch = self.scratch

        def run() -> None:
            cuda.clock_ms += cuda.run_ms
            cuda.view(*scratch)[:] = 0x55
            np.subtract(255, cuda.view(source, size), out=cuda.view(target, size))

        return run


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, fake: FakeTrt) -> None:
        self.fake = fake
        weakref.finalize(self, fake.cuda.events.append, "engine released")

    def get_tensor_name(self, index: int) -> str:
        return (INPUT_NAME, OUTPUT_NAME)[index]

    def get_tensor_dtype(self, _name: str) -> str:
        return self.fake.io

    def create_runtime_config(self) -> SimpleNamespace:
        fake = self.fake
        fake.config = SimpleNamespace(
            set_execution_context_allocation_strategy=fake.strategies.append,
            create_runtime_cache=lambda: SimpleNamespace(
                deserialize=lambda data: fake.jit_read.append(bytes(data)) or True,
                serialize=lambda: fake.jit_kernels,
            ),
            set_runtime_cache=lambda _cache: True,
        )
        return fake.config

    def create_execution_context(self, how: object) -> FakeContext | None:
        if how is not self.fake.config:
            self.fake.strategies.append(how)
        if self.fake.contexts == 0:
            self.fake.logger.log(self.fake.ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (no further information)")
            return None
        self.fake.contexts -= 1
        return FakeContext(self.fake)


BUNDLED = b"header and body"
"""The engine that bundles are made with here."""


class FakeRuntime:
    engine_header_size = 4

    def __init__(self, fake: FakeTrt) -> None:
        self.fake = fake
        weakref.finalize(self, fake.cuda.events.append, "runtime released")

    def get_engine_validity(self, header: bytes) -> tuple[str, int]:
        assert len(header) == self.engine_header_size
        stale = self.fake.refuses == "gpu" and BUNDLED.startswith(header)
        return ("invalid", 2) if stale else self.fake.validity

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        stale = self.fake.refuses == "loads" and data == BUNDLED
        return FakeEngine(self.fake) if self.fake.loads and not stale else None


class FakeTrt:
    """As much of ``tensorrt_rtx`` as the backend uses. What is set on it changes what the engine does."""

    __version__ = "1.7.1.116"
    DataType = SimpleNamespace(UINT8="uint8")
    EngineValidity = SimpleNamespace(VALID="valid", SUBOPTIMAL="suboptimal", INVALID="invalid")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        def log(self, severity: Any, msg: str) -> None: ...

    def __init__(self, device: FakeCuda) -> None:
        self.cuda = device
        self.validity: tuple[str, int] = ("valid", 0)
        self.loads = self.takes_shapes = True
        self.refuses = ""
        self.refusal = ""
        self.contexts = 100
        self.scratch_per_px = 4
        self.strategies: list[object] = []
        self.io = "uint8"
        self.jit_kernels = b"kernels"
        self.jit_read: list[bytes] = []
        self.config = SimpleNamespace()
        self.logger: FakeTrt.ILogger = FakeTrt.ILogger()

    def Runtime(self, logger: FakeTrt.ILogger) -> FakeRuntime:  # noqa: N802 - TensorRT's name
        self.logger = logger
        return FakeRuntime(self)

    @property
    def graphs(self) -> bool:
        return getattr(self.config, "cuda_graph_strategy", "") == "whole"

    def scratch_bytes(self, shape: tuple[int, ...]) -> int:
        return self.scratch_per_px * math.prod(shape[:3])


@pytest.fixture
def device() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def fake(device: FakeCuda) -> FakeTrt:
    return FakeTrt(device)


def open_fake(fake: FakeTrt, *, jit_cache: Path | None = None, cuda_graphs: bool = True, **changes: Any) -> TrtBackend:
    return TrtBackend(
        trt=fake,
        engine=BUNDLED,
        entry=engine_entry(**changes),
        name="rtx",
        cuda=fake.cuda,
        jit_cache=jit_cache,
        cuda_graphs=cuda_graphs,
    )


def executed(device: FakeCuda) -> list[str]:
    return [event for event in device.events if event.startswith("execute")]


# Probes


@pytest.mark.parametrize("probe", [gpu_problem, rtx.unavailable, trt.unavailable])
def test_probes_give_words_or_none(probe: Callable[[], str | None]) -> None:
    assert probe() is None or str(probe()).strip()


@pytest.mark.parametrize(
    ("status", "driver", "words"),
    [
        ((35, None), 0, "no NVIDIA driver"),
        ((35, None), 12040, "too old: it knows CUDA 12.4, 13.0 is needed"),
        ((100, None), 13000, "CUDA_VISIBLE_DEVICES"),
        ((0, 0), 13000, "shows no GPU"),
        ((999, None), 13000, "unknown error (CUDA error 999)"),
    ],
)
def test_gpu_problem_says_why(
    monkeypatch: pytest.MonkeyPatch, status: tuple[int, int | None], driver: int, words: str
) -> None:
    fake_cuda_packages(monkeypatch, status=status, driver=driver)
    assert words in str(gpu_problem())


@pytest.mark.parametrize(
    ("module", "package"), [("cuda.bindings.runtime", "cuda-bindings"), ("cuda.core", "cuda-core")]
)
def test_gpu_problem_names_the_missing_package(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    fake_cuda_packages(monkeypatch)
    monkeypatch.setitem(sys.modules, module, None)
    assert str(gpu_problem()).startswith(f"{package} is not installed (pip install")


def test_no_gpu_is_a_backend_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda_packages(monkeypatch, status=(35, None), driver=0)
    for needs_a_gpu in (GpuCuda, cuda.device_name, cuda.compute_capability):
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            needs_a_gpu()


def test_unavailable_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msan_runtime.backends._trt.find_spec", lambda _name: None)
    assert rtx.unavailable() == "tensorrt_rtx is not installed (pip install 'msan[rtx]')"
    assert trt.unavailable() == "tensorrt is not installed (pip install 'msan[tensorrt]')"


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt"])
def test_opening_without_the_package_is_a_backend_error(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    open_engine = {"tensorrt_rtx": rtx.open_rtx, "tensorrt": trt.open_tensorrt}[module]
    with pytest.raises(BackendError, match=f"{module} does not load.*pip install"):
        open_engine(b"", engine_entry())


# CUDA, through stand-ins for its packages


class FakeStream:
    """A stream of cuda.core that does things at once."""

    def __init__(self, handle: int, events: list[str]) -> None:
        self.handle = handle
        self.events = events

    def sync(self) -> None:
        self.events.append(f"sync {self.handle}")

    def record(self, *, options: SimpleNamespace) -> FakeCoreEvent:
        self.events.append(f"record {self.handle}")
        return FakeCoreEvent(options, self.events)

    def wait(self, event: FakeCoreEvent) -> None:
        assert isinstance(event, FakeCoreEvent)
        self.events.append(f"wait {self.handle}")

    def close(self) -> None:
        self.events.append(f"close {self.handle}")


class FakeCoreEvent:
    def __init__(self, options: SimpleNamespace, events: list[str]) -> None:
        self.options = options
        self.events = events

    def sync(self) -> None:
        assert self.options.blocking_sync
        self.events.append("event sync")

    def __sub__(self, other: FakeCoreEvent) -> float:
        if not (self.options.timing_enabled and other.options.timing_enabled):
            raise RuntimeError("timing is off")
        return 2.5


class FakeCudaRuntime:
    """cuda.bindings.runtime with one GPU of 1,000 bytes in host memory."""

    cudaMemcpyKind = SimpleNamespace(  # noqa: N815 - CUDA's names
        cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down", cudaMemcpyDeviceToDevice="within"
    )

    def __init__(self, events: list[str], status: tuple[int, int | None], driver: int) -> None:
        self.events = events
        self.memory: dict[int, npt.NDArray[np.uint8]] = {}
        self.cudaGetDeviceCount = lambda: status
        self.cudaDriverGetVersion = lambda: (0, driver)
        self.cudaRuntimeGetVersion = lambda: (0, 13000)
        self.cudaMallocHost = self.cudaMalloc
        self.cudaFreeHost = self.cudaFree

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {2: b"out of memory"}.get(status, b"unknown error")

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:  # noqa: N802
        if size + sum(memory.size for memory in self.memory.values()) > 1000:
            return 2, None
        memory = np.zeros(size, np.uint8)
        self.memory[memory.ctypes.data] = memory
        return 0, memory.ctypes.data

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, handle: int) -> tuple[int]:  # noqa: N802
        self.events.append(f"{kind} {handle}")
        if size > 100:
            return (1,)
        ctypes.memmove(target, source, size)
        return (0,)


def fake_cuda_packages(
    monkeypatch: pytest.MonkeyPatch, *, status: tuple[int, int | None] = (0, 1), driver: int = 13000
) -> FakeCudaRuntime:
    """Stand-ins for cuda.core and cuda.bindings; gives the latter, which lists what happens."""
    events: list[str] = []
    handles = iter((6, 7, 8))

    def device(ordinal: int) -> SimpleNamespace:
        assert ordinal == 0
        return SimpleNamespace(
            name="Fake 4090",
            compute_capability=(8, 9),
            set_current=lambda: events.append("current"),
            create_stream=lambda: FakeStream(next(handles), events),
        )

    runtime: Any = FakeCudaRuntime(events, status, driver)
    core: Any = SimpleNamespace(Device=device, EventOptions=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    return runtime


def test_gpu_cuda_copies_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake_cuda_packages(monkeypatch)
    gpu = GpuCuda()
    assert gpu.device == "Fake 4090 (compute capability 8.9)"
    assert gpu.stream_handle == 7
    there, other = gpu.allocate_staging(100), gpu.allocate_staging(80)
    there.host[:50] = 9
    gpu.upload(there, 50)
    gpu.wait(Lane.COMPUTE, gpu.record(Lane.UPLOAD))
    gpu.copy(other.device_address, there.device_address, 40)
    gpu.download(other, 80)
    gpu.wait_here(gpu.record(Lane.DOWNLOAD))
    np.testing.assert_array_equal(other.host, [9] * 40 + [0] * 40)
    gpu.synchronize()
    gpu.close()
    happened = ["current", "up 6", "record 6", "wait 7", "within 7", "down 8", "record 8", "event sync"]
    assert runtime.events == [*happened, "sync 6", "sync 7", "sync 8", "close 6", "close 7", "close 8"]
    assert runtime.memory == {}


def test_gpu_cuda_times_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda_packages(monkeypatch)
    gpu = GpuCuda()
    start, end = (gpu.record(Lane.COMPUTE, timed=True) for _ in range(2))
    assert gpu.elapsed_ms(start, end) == 2.5
    with pytest.raises(BackendError, match="timing the GPU failed: timing is off"):
        gpu.elapsed_ms(start, gpu.record(Lane.COMPUTE))


def test_gpu_cuda_puts_failures_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda_packages(monkeypatch)
    gpu = GpuCuda()
    with pytest.raises(BackendError, match=r"upload copy failed: unknown error \(CUDA error 1\)"):
        gpu.upload(gpu.allocate_staging(200), 101)


def test_gpu_cuda_out_of_memory_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake_cuda_packages(monkeypatch)
    gpu = GpuCuda()
    with pytest.raises(OutOfMemoryError, match=r"allocating 2 MiB on the GPU failed: out of memory"):
        gpu.allocate(2 * 2**20)
    with pytest.raises(OutOfMemoryError, match="page-locked"):
        gpu.allocate_staging(600)
    assert runtime.memory == {}
    gpu.allocate(1000)


@pytest.mark.parametrize(
    "message",
    ["CUDA_ERROR_OUT_OF_MEMORY: no", "Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "out of memory"],
)
def test_out_of_memory_is_known_by_its_words(message: str) -> None:
    assert isinstance(device_error(message), OutOfMemoryError)
    assert type(device_error("an illegal memory access was encountered")) is BackendError


# Words and limits


def test_diagnostics_are_decoded() -> None:
    assert "built it" in diagnostics_in_words(1)
    assert diagnostics_in_words(2 | 4).count(";") == 1
    assert "driver" in diagnostics_in_words(2 | 4)
    assert diagnostics_in_words(128) == "unknown diagnostic 128"
    assert diagnostics_in_words(0) == "no reason given"


def test_every_diagnostic_of_the_installed_release_has_words() -> None:
    tensorrt_rtx: Any = pytest.importorskip("tensorrt_rtx")
    for name, diagnostic in tensorrt_rtx.EngineInvalidityDiagnostics.__members__.items():
        assert "unknown" not in diagnostics_in_words(int(diagnostic)), name


def test_limits_are_the_profiles() -> None:
    limits = tile_limits(PROFILE)
    assert (limits.smallest, limits.largest, limits.area_px) == ((16, 16), (48, 64), 48 * 64)


def test_limits_stay_under_what_attention_bears() -> None:
    limits = tile_limits(Profile(min=(1, 64, 64), opt=(1, 720, 1280), max=(1, 4096, 4096)))
    assert limits.area_px == ATTENTION_AREA_PX
    assert limits.area_px // 64 == 65_504


# Loading


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_rubbish_is_refused_in_words(device: FakeCuda, flavour: str) -> None:
    tensorrt_rtx: Any = pytest.importorskip("tensorrt_rtx")
    entry = engine_entry(flavour=flavour, flavour_version=tensorrt_rtx.__version__)
    words = {"tensorrt-rtx": "damaged", "tensorrt": "cannot load engine.rtx: .*erialization"}[flavour]
    with pytest.raises(BackendError, match=words):
        TrtBackend(trt=tensorrt_rtx, engine=b"rubbish" * 100, entry=entry, name="rtx", cuda=device)
    assert device.events == ["cuda closed"]


def test_another_release_is_refused(fake: FakeTrt) -> None:
    with pytest.raises(BackendError, match=r"built by TensorRT-RTX 1\.6\.0, this is 1\.7\.1: build it again"):
        open_fake(fake, flavour_version="1.6.0.99")
    assert fake.cuda.events == ["cuda closed"]


def test_another_build_of_the_release_is_accepted(fake: FakeTrt) -> None:
    open_fake(fake, flavour_version="1.7.1").close()


def test_another_gpu_is_refused(fake: FakeTrt) -> None:
    fake.validity = ("invalid", 2)
    with pytest.raises(BackendError, match=r"8\.6, 8\.9.*not built for this GPU"):
        open_fake(fake)


def test_a_suboptimal_engine_runs_with_a_warning(fake: FakeTrt, caplog: pytest.LogCaptureFixture) -> None:
    fake.validity = ("suboptimal", 4)
    open_fake(fake).close()
    assert "slower here than it could" in caplog.text


def test_an_engine_that_does_not_load_is_refused(fake: FakeTrt) -> None:
    fake.loads = False
    with pytest.raises(BackendError, match=r"cannot load engine\.rtx: TensorRT gave no reason"):
        open_fake(fake)
    assert "cuda closed" in fake.cuda.events


def test_an_engine_of_float_pictures_is_refused(fake: FakeTrt) -> None:
    fake.io = "float32"
    with pytest.raises(BackendError, match=r"blurred \(float32\).*uint8"):
        open_fake(fake)


def test_kernels_are_specialised_lazily(fake: FakeTrt) -> None:
    open_fake(fake).close()
    assert fake.config.dynamic_shapes_kernel_specialization_strategy == "lazy"


def test_compiled_kernels_are_kept(fake: FakeTrt, tmp_path: Path) -> None:
    cache = tmp_path / "jit" / "kernels.bin"
    open_fake(fake, jit_cache=cache).close()
    assert recall(cache) == b"kernels"
    assert fake.jit_read == []
    open_fake(fake, jit_cache=cache).close()
    assert fake.jit_read == [b"kernels"]


def test_damaged_kernels_never_reach_tensorrt(fake: FakeTrt, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "jit.kernels"
    open_fake(fake, jit_cache=cache).close()
    for damage in (cache.read_bytes()[:-1], cache.read_bytes() + b"x", b"garbage", b""):
        cache.write_bytes(damage)
        caplog.clear()
        open_fake(fake, jit_cache=cache).close()
        assert fake.jit_read == []
        assert "damaged and was thrown away" in caplog.text
        assert recall(cache) == b"kernels"


def test_too_many_kernels_are_not_kept(
    fake: FakeTrt, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msan_runtime.backends._engine.KERNELS_BYTES", 3)
    open_fake(fake, jit_cache=tmp_path / "jit.kernels").close()
    assert "too many" in caplog.text
    assert not list(tmp_path.iterdir())


def test_kernels_that_cannot_be_kept_are_a_warning(
    fake: FakeTrt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    open_fake(fake, jit_cache=tmp_path / "file" / "kernels.bin").close()
    assert "was not kept for the next time" in caplog.text


# In a bundle


@pytest.fixture
def engine_bundle(bundle_folder: Path, fake: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A maker of bundles with engines beside the graph, on a machine whose only GPU is the fake."""
    for module in (rtx, trt):
        monkeypatch.setattr(module, "unavailable", lambda: None)
        monkeypatch.setattr(module, "GpuCuda", lambda: fake.cuda)
    monkeypatch.setattr("msan_runtime.backends._trt.import_trt", lambda *_: fake)

    def make(flavour: str = "tensorrt-rtx", profile: Profile = ONE_BY_ONE, **changes: Any) -> Path:
        (bundle_folder / "engine.rtx").write_bytes(BUNDLED)
        manifest = load_manifest(bundle_folder)
        spec = {"stages": 2, "base_channels": 16, "resblocks": 3, "attention": True}
        entry = engine_entry(graph=manifest.graphs[0].path, flavour=flavour, profile=profile, **changes)
        files = (*manifest.files, describe_file(bundle_folder, entry.path))
        save_manifest(dataclasses.replace(manifest, spec=spec, engines=(entry,), files=files), bundle_folder)
        return bundle_folder

    return make


@pytest.mark.parametrize(
    ("flavour", "fault"),
    [("tensorrt-rtx", fault) for fault in ("release", "gpu", "loads")]
    + [("tensorrt", "release"), ("tensorrt", "loads")],
)
def test_an_engine_that_does_not_fit_is_built_again_from_the_graph(
    engine_bundle: Callable[..., Path],
    fake: FakeTrt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    flavour: str,
    fault: str,
) -> None:
    """The real TensorRT-RTX builds; the fake, which takes any other bytes, stands for the GPU that runs them."""
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("msan_runtime.engines.rebuilding.import_flavour", lambda _: fake)
    monkeypatch.setattr("msan_runtime.engines.building.import_flavour", lambda _: tensorrt_rtx)
    monkeypatch.setattr("msan_runtime.engines.building._set_capabilities", lambda *_: None)
    gpu = Target(capability=Capability(major=8, minor=9), gpu_name="GeForce")
    monkeypatch.setattr("msan_runtime.select.this_gpu", lambda: gpu)
    fake.refuses = fault
    folder = engine_bundle(flavour, LARGE, flavour_version="1.6.0" if fault == "release" else "1.7.1")
    name = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}[flavour]
    picture = random_tiles(40, 40, 3)
    with pytest.raises(EngineUnfitError):
        select_backend(open_bundle(folder), name, rebuild=False)
    for built in (True, False):
        caplog.clear()
        with Deblurrer.load(folder, name) as deblurrer:
            np.testing.assert_array_equal(deblurrer.deblur(picture), 255 - picture)
        assert ("building an engine for sm_89" in caplog.text) is built
    (engine,) = kept_in(engines_folder())
    assert engine.about["for"].startswith("8.9")


def test_an_engine_that_a_new_driver_would_take_is_not_built_again(
    engine_bundle: Callable[..., Path], fake: FakeTrt
) -> None:
    fake.validity = ("invalid", 2 | 4)
    with pytest.raises(BackendError, match="update the driver"):
        Deblurrer.load(engine_bundle(), "rtx")


LARGE = Profile(min=(1, 8, 8), opt=(1, 720, 1280), max=(1, 1920, 1920))


@pytest.mark.parametrize(("flavour", "name"), [("tensorrt-rtx", "rtx"), ("tensorrt", "tensorrt")])
def test_the_engine_of_a_bundle_is_run(engine_bundle: Callable[..., Path], flavour: str, name: str) -> None:
    picture = random_tiles(100, 70, 3)
    with Deblurrer.load(engine_bundle(flavour), name) as deblurrer:
        assert deblurrer.backend.name == name
        np.testing.assert_array_equal(deblurrer.deblur(picture), 255 - picture)


def test_kernels_compiled_for_a_bundle_are_there_in_the_next_process(
    engine_bundle: Callable[..., Path], fake: FakeTrt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("msan_runtime.select.cache_folder", lambda: tmp_path / "cache")
    for _ in range(2):
        with Deblurrer.load(engine_bundle(), "rtx") as deblurrer:
            deblurrer.deblur(random_tiles(16, 16, 3))
    assert fake.jit_read == [b"kernels"]
    assert [recall(path) for path in (tmp_path / "cache").rglob("*.kernels")] == [b"kernels"]


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_memory_lowers_the_area_of_an_engines_tiles(
    engine_bundle: Callable[..., Path], flavour: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}[flavour]
    folder = engine_bundle(flavour, LARGE)
    areas: list[int] = []
    for memory_bytes in (None, 2**30, 100 * 2**20):
        with Deblurrer.load(folder, name, memory_bytes=memory_bytes) as deblurrer:
            limits = deblurrer.backend.limits
            assert (limits.smallest, limits.largest) == ((8, 8), (1920, 1920))
            assert limits.attention_px == tile_limits_within(deblurrer.bundle.manifest).attention_px is not None
            areas.append(limits.area_px)
    assert areas[:2] == [1920 * 1920] * 2, "1 GiB is more than the largest tile takes"
    # 10 bytes for each pixel and channel, and a quarter on top of it.
    assert areas[2] == pytest.approx(100 * 2**20 / (1.25 * 10 * 16), abs=64)
    assert not caplog.messages


def test_a_batch_of_tiles_shares_the_memory(engine_bundle: Callable[..., Path]) -> None:
    by_four = dataclasses.replace(LARGE, max=(4, 1920, 1920))
    with Deblurrer.load(engine_bundle(profile=by_four), "rtx", memory_bytes=100 * 2**20) as deblurrer:
        assert deblurrer.backend.limits.area_px == pytest.approx(25 * 2**20 / (1.25 * 10 * 16), abs=64)


def test_too_little_memory_for_an_engine_is_refused_and_the_device_released(
    engine_bundle: Callable[..., Path], device: FakeCuda
) -> None:
    with pytest.raises(BackendError, match=r"rtx: a memory of 0\.5 MiB does not suffice .* allow 1 MiB or more"):
        Deblurrer.load(engine_bundle(profile=LARGE), "rtx", memory_bytes=2**19)
    assert device.events[-1] == "cuda closed"
    Deblurrer.load(engine_bundle(profile=LARGE), "rtx", memory_bytes=2**20).close()


def test_tiles_that_an_engine_does_not_take_are_refused_and_the_device_released(
    engine_bundle: Callable[..., Path], device: FakeCuda
) -> None:
    with pytest.raises(ContractError, match="over this backend's largest 48×64"):
        Deblurrer.load(engine_bundle(), "rtx", tile=(128, 128))
    assert device.events[-1] == "cuda closed"


# Running


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (2, 48, 64, 3), (2, 24, 40, 3), (0, 16, 16, 3)])
def test_infer_gives_what_the_engine_computes(fake: FakeTrt, shape: tuple[int, ...]) -> None:
    tiles = random_tiles(*shape)
    with open_fake(fake) as backend:
        result = backend.infer(tiles)
    np.testing.assert_array_equal(result, 255 - tiles)
    assert result.dtype == np.uint8


def test_results_are_new_arrays(fake: FakeTrt) -> None:
    first, second = random_tiles(2, 1, 16, 16, 3)
    with open_fake(fake) as backend:
        before = backend.infer(first)
        backend.infer(second)
    np.testing.assert_array_equal(before, 255 - first)


def test_tiles_need_not_be_contiguous(fake: FakeTrt) -> None:
    tiles = random_tiles(1, 32, 64, 3)[:, :, ::2]
    with open_fake(fake) as backend:
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)


def test_memory_is_allocated_when_tiles_need_more(fake: FakeTrt) -> None:
    with open_fake(fake) as backend:
        assert fake.cuda.live_bytes == 0
        backend.infer(random_tiles(1, 16, 16, 3))
        small_bytes = fake.cuda.live_bytes
        backend.infer(random_tiles(2, 48, 64, 3))
        allocations, large_bytes = fake.cuda.events.count("allocate"), fake.cuda.live_bytes
        for shape in [(1, 16, 16, 3), (2, 48, 64, 3), (1, 48, 64, 3)] * 2:
            backend.infer(random_tiles(*shape))
    assert small_bytes < 16 * 16 * (3 * 3 + fake.scratch_per_px) + 4 * 256
    assert large_bytes >= 2 * 48 * 64 * (3 * 3 + fake.scratch_per_px)
    assert (fake.cuda.events.count("allocate"), fake.cuda.live_bytes) == (allocations, large_bytes)


@pytest.mark.parametrize("sides", [(16, 48), (48, 16)])
def test_shapes_whose_needs_cross_share_memory_in_the_end(
    fake: FakeTrt, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
) -> None:
    monkeypatch.setattr(FakeTrt, "scratch_bytes", lambda _self, shape: 90_000 if shape[1] == 16 else 10)
    with open_fake(fake) as backend:
        for _ in range(4):
            for side in sides:
                tiles = random_tiles(1, side, side, 3)
                np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)
    assert fake.cuda.events.count("context released") == 2


def test_the_shape_is_set_when_it_changes(fake: FakeTrt) -> None:
    with open_fake(fake) as backend:
        for side in (32, 32, 16, 32):
            backend.infer(random_tiles(1, side, side, 3))
    shapes = [event for event in fake.cuda.events if event.startswith("shape")]
    assert shapes == [f"shape (1, {side}, {side}, 3)" for side in (32, 16, 32)]


def test_a_large_batch_is_split(fake: FakeTrt) -> None:
    tiles = random_tiles(5, 16, 24, 3)
    with open_fake(fake) as backend:
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)
    assert executed(fake.cuda) == ["execute 2", "execute 2", "execute 1"]


def test_a_batch_under_the_profiles_smallest_is_filled_up(fake: FakeTrt) -> None:
    profile = Profile(min=(2, 16, 16), opt=(2, 16, 16), max=(4, 16, 16))
    tiles = random_tiles(5, 16, 16, 3)
    with open_fake(fake, profile=profile) as backend:
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)
    assert "execute 2" in fake.cuda.events


def test_tiles_over_the_area_are_refused(fake: FakeTrt) -> None:
    profile = Profile(min=(1, 8, 8), opt=(1, 8, 8), max=(1, 2048, 4096))
    with open_fake(fake, profile=profile) as backend, pytest.raises(ContractError, match="largest area"):
        backend.infer(np.zeros((1, 2048, 2056, 3), np.uint8))


def test_tiles_over_the_profile_are_refused(fake: FakeTrt) -> None:
    with open_fake(fake) as backend, pytest.raises(ContractError, match="largest 48×64"):
        backend.infer(random_tiles(1, 56, 64, 3))


def test_a_failed_run_says_why_and_leaves_nothing_pending(fake: FakeTrt) -> None:
    tiles = random_tiles(1, 16, 16, 3)
    with open_fake(fake) as backend:
        fake.refusal = "Error Code 1: Cask."
        with pytest.raises(BackendError, match=r"failed on tiles of shape \(1, 16, 16, 3\): Error Code 1: Cask\. Free"):
            backend.infer(tiles)
        assert fake.cuda.pending == 0
        fake.refusal = ""
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)


def test_a_refused_shape_is_an_error_each_time(fake: FakeTrt) -> None:
    fake.takes_shapes = False
    with open_fake(fake) as backend:
        for _ in range(2):
            with pytest.raises(BackendError, match="does not take tiles"):
                backend.infer(random_tiles(1, 16, 16, 3))


# Many tiles, on lanes that overlap

SHAPES = [(1, 16, 16), (1, 24, 40), (2, 16, 16), (3, 16, 24), (5, 48, 64), (0, 16, 16)]


def batches_of(shapes: Iterable[tuple[int, ...]]) -> list[PictureArray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.sampled_from(SHAPES), max_size=9),
    seed=st.none() | st.integers(0, 2**32),
    most=st.integers(1, 4),
    graphs=st.booleans(),
)
def test_many_batches_come_out_right_whenever_the_lanes_move(
    shapes: list[tuple[int, ...]], seed: int | None, most: int, graphs: bool
) -> None:
    fake = FakeTrt(FakeCuda(None if seed is None else Random(seed)))
    tiles = batches_of(shapes)
    profile = Profile(min=(1, 16, 16), opt=(1, 32, 32), max=(most, 48, 64))
    with open_fake(fake, profile=profile, cuda_graphs=graphs) as backend:
        results = list(backend.infer_many(tiles))
        assert fake.cuda.pending == 0
    assert len(results) == len(tiles)
    for result, batch in zip(results, tiles, strict=True):
        np.testing.assert_array_equal(result, 255 - batch)


def test_uploads_wait_for_no_run_and_runs_for_no_download(fake: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the device busy all the time: at each wait of the host the other lanes could have run ahead."""
    left: list[tuple[int, int]] = []
    waits = fake.cuda.wait_here

    def waiting(event: FakeEvent) -> None:
        if event.lane is Lane.DOWNLOAD:
            left.append((fake.cuda.drain(Lane.UPLOAD), fake.cuda.drain(Lane.COMPUTE)))
        waits(event)

    monkeypatch.setattr(fake.cuda, "wait_here", waiting)
    with open_fake(fake, profile=ONE_BY_ONE) as backend:
        list(backend.infer_many(batches_of([(1, 16, 16)] * 6)))
    assert left == [(0, 0)] * 6


def test_two_runs_are_under_way_while_a_result_is_used(fake: FakeTrt) -> None:
    taken: list[int] = []
    with open_fake(fake, profile=ONE_BY_ONE) as backend:
        source = (taken.append(index) or batch for index, batch in enumerate(batches_of([(1, 16, 16)] * 6)))
        results = backend.infer_many(source)
        assert taken == []
        for index, _ in enumerate(results):
            assert len(taken) == min(index + 3, 6)
            assert len(executed(fake.cuda)) == len(taken)


def test_a_stream_of_equal_tiles_is_prepared_and_allocated_for_once(fake: FakeTrt) -> None:
    with open_fake(fake, profile=ONE_BY_ONE) as backend:
        list(backend.infer_many(batches_of([(1, 32, 32)] * 9)))
    assert fake.cuda.events.count("allocate") == 4
    assert [event for event in fake.cuda.events if event.startswith("shape")] == ["shape (1, 32, 32, 3)"]


def test_tiles_of_one_size_share_runs(fake: FakeTrt) -> None:
    profile = Profile(min=(1, 16, 16), opt=(1, 32, 32), max=(4, 48, 64))
    tiles = batches_of([(1, 16, 16)] * 6 + [(1, 24, 16)] * 2 + [(3, 24, 16), (6, 24, 16)])
    with open_fake(fake, profile=profile) as backend:
        for result, batch in zip(backend.infer_many(tiles), tiles, strict=True):
            np.testing.assert_array_equal(result, 255 - batch)
    assert executed(fake.cuda) == [f"execute {count}" for count in (4, 2, 2, 3, 4, 2)]


def test_closing_early_leaves_the_backend_usable(fake: FakeTrt) -> None:
    tiles = batches_of([(1, 16, 16)] * 9)
    with open_fake(fake, profile=ONE_BY_ONE) as backend:
        for used in range(4):
            results = backend.infer_many(tiles)
            for _ in range(used):
                next(results)
            results.close()
            assert fake.cuda.pending == 0
        np.testing.assert_array_equal(np.concatenate(list(backend.infer_many(tiles))), 255 - np.concatenate(tiles))
    assert fake.cuda.events.count("allocate") == 4


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_other_calls_may_come_between_two_results(seed: int | None) -> None:
    fake = FakeTrt(FakeCuda(None if seed is None else Random(seed)))
    tiles, others = batches_of([(1, 16, 16)] * 7), batches_of([(1, 48, 64), (2, 16, 16)] * 4)
    with open_fake(fake) as backend:
        for result, batch, other in zip(backend.infer_many(tiles), tiles, others, strict=False):
            np.testing.assert_array_equal(backend.infer(other), 255 - other)
            np.testing.assert_array_equal(result, 255 - batch)


def test_an_error_of_the_source_comes_in_its_turn(fake: FakeTrt) -> None:
    def source() -> Iterator[PictureArray]:
        yield from batches_of([(1, 16, 16)] * 3)
        raise OSError("unplugged")

    assert_ends(open_fake(fake), source(), 3, OSError)


def test_a_tile_over_the_limits_comes_in_its_turn(fake: FakeTrt) -> None:
    assert_ends(open_fake(fake), batches_of([(1, 16, 16)] * 3 + [(1, 56, 64), (1, 16, 16)]), 3, ContractError)


def test_a_failed_run_comes_in_its_turn(fake: FakeTrt) -> None:
    def source() -> Iterator[PictureArray]:
        yield from batches_of([(1, 16, 16)] * 4)
        fake.refusal = "Cask"
        yield from batches_of([(1, 16, 16)])

    assert_ends(open_fake(fake), source(), 4, BackendError)


def assert_ends(backend: TrtBackend, source: Iterable[PictureArray], good: int, error: type[Exception]) -> None:
    """After ``good`` results comes ``error``, and nothing is left under way."""
    expected = batches_of([(1, 16, 16)] * good)
    results = backend.infer_many(source)
    with backend:
        for batch in expected:
            np.testing.assert_array_equal(next(results), 255 - batch)
        with pytest.raises(error):
            next(results)
        assert list(results) == []


def test_a_stream_of_a_closed_backend_ends_with_an_error(fake: FakeTrt) -> None:
    backend = open_fake(fake, profile=ONE_BY_ONE)
    results = backend.infer_many(batches_of([(1, 16, 16)] * 5))
    next(results)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        next(results)
    assert fake.cuda.events[-1] == "cuda closed"


# Device memory


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_contexts_bring_no_memory_of_their_own(fake: FakeTrt, flavour: str) -> None:
    with open_fake(fake, flavour=flavour) as backend:
        tiles = random_tiles(1, 16, 16, 3)
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)
    assert set(fake.strategies) == {"ours"}


def test_smaller_tiles_run_after_the_device_ran_out(fake: FakeTrt) -> None:
    fake.scratch_per_px = 50
    fake.cuda.capacity_bytes = 100_000
    with open_fake(fake) as backend:
        for side in (48, 16, 48, 32):
            tiles = random_tiles(1, side, side, 3)
            if side == 48:
                with pytest.raises(OutOfMemoryError):
                    backend.infer(tiles)
                assert fake.cuda.live_bytes == 0
            else:
                np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)


def test_running_out_under_way_loses_no_earlier_result(fake: FakeTrt) -> None:
    fake.scratch_per_px = 50
    fake.cuda.capacity_bytes = 100_000
    backend = open_fake(fake, profile=ONE_BY_ONE)
    assert_ends(backend, batches_of([(1, 16, 16)] * 3 + [(1, 48, 64)]), 3, OutOfMemoryError)


def test_memory_that_suffices_for_one_but_not_three_stagings_is_an_error_each_time(fake: FakeTrt) -> None:
    """The caller decides what to do with less: nothing hangs, nothing leaks."""
    tiles = batches_of([(1, 48, 64)] * 3)
    fake.cuda.capacity_bytes = 48 * 64 * (3 * 3 + fake.scratch_per_px) + 1000
    with open_fake(fake, profile=ONE_BY_ONE) as backend:
        np.testing.assert_array_equal(backend.infer(tiles[0]), 255 - tiles[0])
        with pytest.raises(OutOfMemoryError):
            list(backend.infer_many(tiles))
        np.testing.assert_array_equal(backend.infer(tiles[1]), 255 - tiles[1])


@pytest.mark.parametrize(
    "words", ["Cuda Runtime (out of memory)", "Error Code 2: OutOfMemory (no further information)"]
)
def test_tensorrt_running_out_is_told_by_its_log(fake: FakeTrt, words: str) -> None:
    tiles = random_tiles(1, 16, 16, 3)
    with open_fake(fake) as backend:
        fake.refusal = words
        with pytest.raises(OutOfMemoryError, match=re.escape(words)):
            backend.infer(tiles)
        assert fake.cuda.live_bytes == 0
        fake.refusal = ""
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)


def test_a_context_that_finds_no_memory_is_told_and_made_later(fake: FakeTrt) -> None:
    fake.contexts = 1
    small, large = batches_of([(1, 16, 16), (1, 48, 64)])
    with open_fake(fake) as backend:
        backend.infer(small)
        with pytest.raises(OutOfMemoryError, match=r"cannot run engine\.rtx: Error Code 2"):
            backend.infer(large)
        fake.contexts = 1
        np.testing.assert_array_equal(backend.infer(small), 255 - small)


# CUDA graphs and time


@pytest.mark.parametrize(("graphs", "strategy"), [(True, "whole"), (False, "disabled")])
def test_cuda_graphs_can_be_left_out(fake: FakeTrt, graphs: bool, strategy: str) -> None:
    open_fake(fake, cuda_graphs=graphs).close()
    assert fake.config.cuda_graph_strategy == strategy


def test_a_captured_graph_does_not_outlive_its_memory(fake: FakeTrt) -> None:
    """The small shape is captured, the memory grows and moves, the small shape comes again."""
    small, large = batches_of([(1, 16, 16), (1, 48, 64)])
    with open_fake(fake) as backend:
        for tiles in [small] * 3 + [large] * 3 + [small] * 3:
            np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)


def test_busy_time_is_that_of_the_runs(fake: FakeTrt) -> None:
    tiles = batches_of([(1, 16, 16)] * 4)
    with open_fake(fake, profile=ONE_BY_ONE) as backend:
        assert backend.busy_ms is None
        list(backend.infer_many(tiles))
        assert backend.busy_ms is None
        for _ in range(2):
            backend.reset_busy()
            list(backend.infer_many(tiles))
            assert backend.busy_ms == 4 * FakeCuda.run_ms


# Closing


def test_everything_is_released_in_order_and_once(fake: FakeTrt) -> None:
    backend = open_fake(fake)
    fake.cuda.events.clear()
    backend.close()
    backend.close()
    assert fake.cuda.events == [
        "synchronize",
        "context released",
        "engine released",
        "runtime released",
        "cuda closed",
    ]


def test_a_closed_backend_says_so(fake: FakeTrt) -> None:
    backend = open_fake(fake)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.infer(random_tiles(1, 16, 16, 3))


def test_closing_after_a_device_failure_does_not_hide_it(
    fake: FakeTrt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise BackendError("illegal address")

    backend = open_fake(fake)
    monkeypatch.setattr(fake.cuda, "synchronize", broken)
    backend.close()
    assert fake.cuda.events[-1] == "cuda closed"
    assert "illegal address" in caplog.text
