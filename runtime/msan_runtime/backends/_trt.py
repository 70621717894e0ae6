"""The backend of both TensorRT flavours: uploads, runs and downloads of tiles overlap."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from msan_runtime.backends._engine import TITLES, NativeEngine
from msan_runtime.backends.base import Backend, TileLimits, check_tiles
from msan_runtime.backends.cuda import Cuda, Lane, Staging, gpu_problem
from msan_runtime.contract import PictureArray
from msan_runtime.errors import BackendError, OutOfMemoryError
from msan_runtime.manifest import EngineEntry, Profile

__all__ = ["ATTENTION_AREA_PX", "TrtBackend", "import_trt", "tile_limits", "unavailable"]

logger = logging.getLogger(__name__)

PX_PER_KEY = 8 * 8
ATTENTION_AREA_PX = 65_504 * PX_PER_KEY
"""Largest tile: fused FP16 attention gives NaN over more than 65,504 keys, and a key stands for 8×8 pixels."""

RUNS_AHEAD = 2
"""One on the device while the next is uploaded: the device never waits for the one who takes the results."""


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


def tile_limits(profile: Profile) -> TileLimits:
    """The tiles that an engine of ``profile`` takes: its sizes, and no more pixels than attention bears."""
    smallest, largest = profile.min[1:], profile.max[1:]
    return TileLimits(smallest=smallest, largest=largest, area_px=min(prod(largest), ATTENTION_AREA_PX))


class TrtBackend(Backend):
    """Runs a native engine of the image contract, uint8 in and out.

    Memory is allocated when tiles need it, kept for the next ones, and given back when the device runs out.
    """

    def __init__(
        self,
        *,
        trt: Any,
        engine: bytes,
        entry: EngineEntry,
        name: str,
        cuda: Cuda,
        jit_cache: Path | None = None,
        cuda_graphs: bool = True,
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
            cuda_graphs: TensorRT-RTX launches a repeated tile shape as one CUDA graph. Without effect on
                classic TensorRT.

        Raises:
            BackendError: if the engine does not load here.
        """
        with ExitStack() as opened:
            opened.callback(cuda.close)
            self.name = name
            self.limits = tile_limits(entry.profile)
            self.precision = entry.precision
            self.device = f"{cuda.device}, {TITLES[entry.flavour]} {trt.__version__}"
            self._cuda = cuda
            self._batches = (entry.profile.min[0], entry.profile.max[0])
            self._idle: list[Staging] = []
            self._busy_ms: float | None = None
            self._closed = False
            cuda.activate()
            self._engine = NativeEngine(
                trt=trt, engine=engine, entry=entry, cuda=cuda, jit_cache=jit_cache, cuda_graphs=cuda_graphs
            )
            opened.callback(self._engine.close)
            self._opened = opened.pop_all()

    @property
    def busy_ms(self) -> float | None:
        """How long the device computed for results given since ``reset_busy``; ``None`` before the first reset."""
        return self._busy_ms

    def reset_busy(self) -> None:
        """Measure ``busy_ms`` from now on; it costs two events a run."""
        self._busy_ms = 0.0

    def infer(self, tiles: PictureArray) -> PictureArray:
        (deblurred,) = self.infer_many((tiles,))
        return deblurred

    def infer_many(self, tiles: Iterable[PictureArray]) -> Generator[PictureArray]:
        """:meth:`infer` for each batch, lazily and in order; copies overlap with runs.

        Takes at most two runs ahead of the result that it gives. Batches of one tile size that follow each
        other share a run, as far as the engine's largest batch allows. An error, of ``tiles`` too, is raised
        after the results of the batches before it. Other calls may come between two results.

        Raises:
            ContractError: for a tile that the limits do not allow.
            OutOfMemoryError: if the device's memory does not suffice; smaller tiles can still be run.
            BackendError: if the device fails.
        """
        flying: deque[_Run] = deque()
        failures: list[Exception] = []
        try:
            for run in self._launches(tiles, failures):
                flying.append(run)
                if len(flying) > RUNS_AHEAD:
                    yield from self._land(flying.popleft())
            while flying:
                yield from self._land(flying.popleft())
        finally:
            self._abandon(flying)
        if failures:
            raise failures[0]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with self._opened:
                self._settle()
        except BackendError as error:
            # The device failed before, and that error is on its way up: closing must not hide it.
            logger.warning("closing %s: %s", self.name, error)

    def _launches(self, tiles: Iterable[PictureArray], failures: list[Exception]) -> Iterator[_Run]:
        """Launch all of ``tiles``, until one fails: that error is the caller's to raise in its turn."""
        try:
            for group in _groups(self._jobs(tiles), self._batches[1]):
                yield self._launch(group)
        except Exception as error:
            failures.append(error)

    def _jobs(self, tiles: Iterable[PictureArray]) -> Iterator[_Job]:
        """Each batch as one job, or as several if it is over the engine's largest batch."""
        most = self._batches[1]
        for batch in tiles:
            check_tiles(batch, self.limits)
            whole = np.empty(batch.shape, np.uint8)
            last = max(len(batch) - 1, 0) // most * most
            for start in range(0, last + 1, most):
                part = slice(start, start + most)
                yield _Job(tiles=batch[part], result=whole[part], completes=whole if start == last else None)

    def _launch(self, jobs: tuple[_Job, ...]) -> _Run:
        """Enqueue everything for one run of the engine, and return at once."""
        self._use_device()
        count = sum(len(job.tiles) for job in jobs)
        one = jobs[0].tiles.shape[1:]
        shape = (max(count, self._batches[0]), *one)
        staging: Staging | None = None
        try:
            self._engine.prepare(shape)
            staging = self._take_staging(prod(shape))
            _gather(jobs, staging)
            return self._enqueue(jobs, staging, count * prod(one))
        except BackendError as error:
            self._settle()
            self._idle += [] if staging is None else [staging]
            if isinstance(error, OutOfMemoryError):
                self._release_memory()
            raise

    def _enqueue(self, jobs: tuple[_Job, ...], staging: Staging, size_bytes: int) -> _Run:
        # The engine has one place for its input and one for its output, so that a captured CUDA graph stays
        # valid; a copy within the device is cheap beside a run. One staging holds both ways: the result comes
        # back to where the input, then used up, was.
        cuda, engine = self._cuda, self._engine
        cuda.upload(staging, size_bytes)
        cuda.wait(Lane.COMPUTE, cuda.record(Lane.UPLOAD))
        timed = self._busy_ms is not None
        start = cuda.record(Lane.COMPUTE, timed=True) if timed else None
        cuda.copy(engine.blurred_address, staging.device_address, size_bytes)
        engine.execute()
        cuda.copy(staging.device_address, engine.deblurred_address, size_bytes)
        computed = cuda.record(Lane.COMPUTE, timed=timed)
        cuda.wait(Lane.DOWNLOAD, computed)
        cuda.download(staging, size_bytes)
        return _Run(jobs=jobs, staging=staging, start=start, computed=computed, done=cuda.record(Lane.DOWNLOAD))

    def _land(self, run: _Run) -> list[PictureArray]:
        """Wait for a run; gives the batches that it completes."""
        self._use_device()
        try:
            self._cuda.wait_here(run.done)
            if run.start is not None and self._busy_ms is not None:
                self._busy_ms += self._cuda.elapsed_ms(run.start, run.computed)
            _scatter(run.jobs, run.staging)
        finally:
            self._idle.append(run.staging)
        return [job.completes for job in run.jobs if job.completes is not None]

    def _abandon(self, flying: Iterable[_Run]) -> None:
        """Take back what runs use whose results nobody wants any more."""
        stagings = [run.staging for run in flying]
        if stagings and not self._closed:
            self._settle()
            self._idle += stagings

    def _take_staging(self, size_bytes: int) -> Staging:
        """Idle memory of that size or more; a new one for an idle one that is too small."""
        for index, staging in enumerate(self._idle):
            if staging.host.size >= size_bytes:
                return self._idle.pop(index)
        if self._idle:
            self._cuda.free(self._idle.pop().device_address)
        return self._cuda.allocate_staging(size_bytes)

    def _release_memory(self) -> None:
        self._engine.release_memory()
        while self._idle:
            self._cuda.free(self._idle.pop().device_address)

    def _use_device(self) -> None:
        if self._closed:
            raise BackendError(f"the {self.name} backend was closed: load the bundle again")
        self._cuda.activate()

    def _settle(self) -> None:
        """Wait for all that is under way. Never raises: it cleans up after errors, which it must not hide."""
        try:
            self._cuda.activate()
            self._cuda.synchronize()
        except BackendError as error:
            logger.warning("%s: what was under way failed: %s", self.name, error)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """Tiles for one run, where their results go, and the whole batch of results if these are its last."""

    tiles: PictureArray
    result: PictureArray
    completes: PictureArray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What is under way. ``start`` is ``None`` if the run is not timed."""

    jobs: tuple[_Job, ...]
    staging: Staging
    start: object | None
    computed: object
    done: object


def _groups(jobs: Iterable[_Job], most: int) -> Iterator[tuple[_Job, ...]]:
    """Jobs that share a run: of one tile size, in order, at most ``most`` tiles. Complete also if ``jobs`` fails."""
    group: list[_Job] = []
    try:
        for job in jobs:
            if group and not _fits(job, group, most):
                yield tuple(group)
                group = []
            group.append(job)
            if sum(len(member.tiles) for member in group) == most:
                yield tuple(group)
                group = []
    except Exception:
        if group:
            yield tuple(group)
        raise
    if group:
        yield tuple(group)


def _fits(job: _Job, group: list[_Job], most: int) -> bool:
    count = sum(len(member.tiles) for member in group)
    return job.tiles.shape[1:] == group[0].tiles.shape[1:] and count + len(job.tiles) <= most


def _gather(jobs: Iterable[_Job], staging: Staging) -> None:
    start = 0
    for job in jobs:
        staging.host[start : start + job.tiles.size].reshape(job.tiles.shape)[...] = job.tiles
        start += job.tiles.size


def _scatter(jobs: Iterable[_Job], staging: Staging) -> None:
    start = 0
    for job in jobs:
        job.result[...] = staging.host[start : start + job.tiles.size].reshape(job.tiles.shape)
        start += job.tiles.size
