"""The native backends without a GPU: probes, words, and the logic around an engine that a fake computes."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from msan_runtime.backends import cuda, rtx, trt
from msan_runtime.backends._trt import ATTENTION_AREA_PX, TrtBackend, diagnostics_in_words, tile_limits
from msan_runtime.backends.cuda import GpuCuda, Staging, gpu_problem
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.errors import BackendError, ContractError
from msan_runtime.manifest import EngineEntry, Profile

PROFILE = Profile(min=(1, 16, 16), opt=(2, 32, 32), max=(2, 48, 64))


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


class FakeCuda:
    """A device in host memory. As on a real one, nothing happens before ``synchronize``."""

    device = "fake GPU"
    stream_handle = 7

    def __init__(self) -> None:
        self.events: list[str] = []
        self.queue: list[Callable[[], object]] = []
        self.memory: list[npt.NDArray[np.uint8]] = []

    def activate(self) -> None: ...

    def allocate(self, size_bytes: int) -> Staging:
        self.events.append("allocate")
        host, device = np.zeros(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)
        self.memory.append(device)
        return Staging(host=host, device_address=device.ctypes.data)

    def upload(self, staging: Staging, size_bytes: int) -> None:
        self.enqueue_copy(staging.device_address, staging.host.ctypes.data, size_bytes)

    def download(self, staging: Staging, size_bytes: int) -> None:
        self.enqueue_copy(staging.host.ctypes.data, staging.device_address, size_bytes)

    def enqueue_copy(self, target: int, source: int, size_bytes: int) -> None:
        self.queue.append(lambda: ctypes.memmove(target, source, size_bytes))

    def synchronize(self) -> None:
        self.events.append("synchronize")
        for step in self.queue:
            step()
        self.queue.clear()

    def close(self) -> None:
        self.events.append("cuda closed")


class FakeContext:
    """Computes 255 - x on whatever the addresses point at, in stream order."""

    def __init__(self, fake: FakeTrt) -> None:
        self.fake = fake
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        weakref.finalize(self, fake.cuda.events.append, "context released")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == INPUT_NAME
        self.shape = shape
        self.fake.cuda.events.append(f"shape {shape}")
        return self.fake.takes_shapes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == OUTPUT_NAME
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == FakeCuda.stream_handle
        if not self.fake.runs:
            self.fake.logger.log(self.fake.ILogger.Severity.ERROR, "out of memory")
            return False
        size = int(np.prod(self.shape))
        source, target = (
            np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.addresses[name]))
            for name in (INPUT_NAME, OUTPUT_NAME)
        )
        self.fake.cuda.events.append(f"execute {self.shape[0]}")
        self.fake.cuda.queue.append(lambda: np.subtract(255, source, out=target))
        return True


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
            create_runtime_cache=lambda: SimpleNamespace(
                deserialize=lambda data: fake.jit_read.append(bytes(data)) or True,
                serialize=lambda: fake.jit_kernels,
            ),
            set_runtime_cache=lambda _cache: True,
        )
        return fake.config

    def create_execution_context(self, _config: object = None) -> FakeContext:
        return FakeContext(self.fake)


class FakeRuntime:
    engine_header_size = 4

    def __init__(self, fake: FakeTrt) -> None:
        self.fake = fake
        weakref.finalize(self, fake.cuda.events.append, "runtime released")

    def get_engine_validity(self, header: bytes) -> tuple[str, int]:
        assert len(header) == self.engine_header_size
        return self.fake.validity

    def deserialize_cuda_engine(self, _data: bytes) -> FakeEngine | None:
        return FakeEngine(self.fake) if self.fake.loads else None


class FakeTrt:
    """As much of ``tensorrt_rtx`` as the backend uses. What is set on it changes what the engine does."""

    __version__ = "1.7.1.116"
    DataType = SimpleNamespace(UINT8="uint8")
    EngineValidity = SimpleNamespace(VALID="valid", SUBOPTIMAL="suboptimal", INVALID="invalid")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        def log(self, severity: Any, msg: str) -> None: ...

    def __init__(self, device: FakeCuda) -> None:
        self.cuda = device
        self.validity: tuple[str, int] = ("valid", 0)
        self.loads = self.runs = self.takes_shapes = True
        self.io = "uint8"
        self.jit_kernels = b"kernels"
        self.jit_read: list[bytes] = []
        self.config = SimpleNamespace()
        self.logger: FakeTrt.ILogger = FakeTrt.ILogger()

    def Runtime(self, logger: FakeTrt.ILogger) -> FakeRuntime:  # noqa: N802 - TensorRT's name
        self.logger = logger
        return FakeRuntime(self)


@pytest.fixture
def device() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def fake(device: FakeCuda) -> FakeTrt:
    return FakeTrt(device)


def open_fake(fake: FakeTrt, *, jit_cache: Path | None = None, **changes: Any) -> TrtBackend:
    entry = engine_entry(**changes)
    return TrtBackend(trt=fake, engine=b"header and body", entry=entry, name="rtx", cuda=fake.cuda, jit_cache=jit_cache)


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


class FakeBuffer:
    def __init__(self, size: int, events: list[str]) -> None:
        self.data = np.zeros(size, np.uint8)
        self.handle = self.data.ctypes.data
        self.events = events

    def close(self, _stream: object) -> None:
        self.events.append("buffer closed")


def fake_cuda_packages(
    monkeypatch: pytest.MonkeyPatch, *, status: tuple[int, int | None] = (0, 1), driver: int = 13000
) -> list[str]:
    """Stand-ins for cuda.core and cuda.bindings with one GPU in host memory; gives the list of what happens."""
    events: list[str] = []
    stream = SimpleNamespace(handle=7, sync=lambda: events.append("sync"), close=lambda: events.append("stream closed"))

    def copy(target: int, source: int, size_bytes: int, kind: str, handle: int) -> tuple[int]:
        assert handle == stream.handle
        events.append(kind)
        if size_bytes > 100:
            return (1,)
        ctypes.memmove(target, source, size_bytes)
        return (0,)

    def allocate(size: int, **_stream: object) -> FakeBuffer:
        if size > 1000:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")
        return FakeBuffer(size, events)

    def device(ordinal: int) -> SimpleNamespace:
        assert ordinal == 0
        return SimpleNamespace(
            name="Fake 4090",
            compute_capability=(8, 9),
            set_current=lambda: events.append("current"),
            create_stream=lambda: stream,
            allocate=allocate,
        )

    runtime: Any = SimpleNamespace(
        cudaGetDeviceCount=lambda: status,
        cudaDriverGetVersion=lambda: (0, driver),
        cudaRuntimeGetVersion=lambda: (0, 13000),
        cudaGetErrorString=lambda _status: (0, b"unknown error"),
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaMemcpyAsync=copy,
    )
    core: Any = SimpleNamespace(Device=device, LegacyPinnedMemoryResource=lambda: SimpleNamespace(allocate=allocate))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    return events


def test_gpu_cuda_copies_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    events = fake_cuda_packages(monkeypatch)
    gpu = GpuCuda()
    assert gpu.device == "Fake 4090 (compute capability 8.9)"
    assert gpu.stream_handle == 7
    there = gpu.allocate(100)
    there.host[:50] = 9
    gpu.upload(there, 50)
    there.host[:] = 0
    gpu.download(there, 40)
    gpu.synchronize()
    np.testing.assert_array_equal(there.host, [9] * 40 + [0] * 60)
    gpu.close()
    assert events == ["current", "up", "down", "sync", "buffer closed", "buffer closed", "stream closed"]


def test_gpu_cuda_puts_failures_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda_packages(monkeypatch)
    gpu = GpuCuda()
    with pytest.raises(BackendError, match="allocating 2 MiB on the GPU failed: CUDA_ERROR_OUT_OF_MEMORY"):
        gpu.allocate(2 * 2**20)
    with pytest.raises(BackendError, match=r"copying 101 bytes .* unknown error"):
        gpu.upload(gpu.allocate(200), 101)


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
    assert cache.read_bytes() == b"kernels"
    assert fake.jit_read == []
    open_fake(fake, jit_cache=cache).close()
    assert fake.jit_read == [b"kernels"]


def test_kernels_that_cannot_be_kept_are_a_warning(
    fake: FakeTrt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    open_fake(fake, jit_cache=tmp_path / "file" / "kernels.bin").close()
    assert "compiled kernels were not kept" in caplog.text


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


def test_memory_is_allocated_once(fake: FakeTrt) -> None:
    with open_fake(fake) as backend:
        assert fake.cuda.events.count("allocate") == 2
        for _ in range(2):
            backend.infer(random_tiles(2, 48, 64, 3))
            backend.infer(random_tiles(1, 16, 16, 3))
    assert fake.cuda.events.count("allocate") == 2
    assert [memory.size for memory in fake.cuda.memory] == [2 * 48 * 64 * 3] * 2


def test_the_shape_is_set_when_it_changes(fake: FakeTrt) -> None:
    with open_fake(fake) as backend:
        for side in (16, 16, 32, 16):
            backend.infer(random_tiles(1, side, side, 3))
    shapes = [event for event in fake.cuda.events if event.startswith("shape")]
    assert shapes == [f"shape (1, {side}, {side}, 3)" for side in (16, 32, 16)]


def test_a_large_batch_is_split(fake: FakeTrt) -> None:
    tiles = random_tiles(5, 16, 24, 3)
    with open_fake(fake) as backend:
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)
    runs = [event for event in fake.cuda.events if event.startswith("execute")]
    assert runs == ["execute 2", "execute 2", "execute 1"]


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
        fake.runs = False
        with pytest.raises(BackendError, match=r"failed on tiles of shape \(1, 16, 16, 3\): out of memory"):
            backend.infer(tiles)
        assert fake.cuda.queue == []
        fake.runs = True
        np.testing.assert_array_equal(backend.infer(tiles), 255 - tiles)


def test_a_refused_shape_is_an_error_each_time(fake: FakeTrt) -> None:
    fake.takes_shapes = False
    with open_fake(fake) as backend:
        for _ in range(2):
            with pytest.raises(BackendError, match="does not take tiles"):
                backend.infer(random_tiles(1, 16, 16, 3))


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
