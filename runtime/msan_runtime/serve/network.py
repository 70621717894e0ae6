"""The deblurrer in a thread of its own; small pictures of several requests run together where that is faster."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MsanError
from msan_runtime.serve.admission import Ticket
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.problems import ClientGoneError
from msan_runtime.tiling import Batch

__all__ = ["Network"]


@dataclass(kw_only=True, eq=False)
class _Job:
    """The pictures of one request."""

    pictures: Sequence[PictureArray]
    ticket: Ticket
    future: Future[list[PictureArray]] = field(default_factory=Future[list[PictureArray]])
    sharp: list[PictureArray] = field(default_factory=list[PictureArray])

    @property
    def area_px(self) -> int:
        return sum(picture.shape[0] * picture.shape[1] for picture in self.pictures)


class Network:
    """Runs jobs in the order in which they were given; those that fit its run go along with the first."""

    def __init__(self, deblurrer: Deblurrer, metrics: Metrics) -> None:
        self.s_per_px = 2e-6  # a first guess
        self._deblurrer = deblurrer
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "msan-network")
        self._waiting: deque[_Job] = deque()
        self._lock = threading.Lock()

    def submit(self, pictures: Sequence[PictureArray], ticket: Ticket) -> Future[list[PictureArray]]:
        """Deblur the pictures of a request, as soon as it is its turn. Until then the future can be cancelled."""
        job = _Job(pictures=pictures, ticket=ticket)
        with self._lock:
            self._waiting.append(job)
        self._thread.submit(self._next)
        return job.future

    def close(self) -> None:
        """End the thread when all jobs are done, and release the backend."""
        self._thread.submit(self._deblurrer.close).result()
        self._thread.shutdown()

    def _next(self) -> None:
        """In the thread: once for each job; those that went along with another are done by then."""
        with self._lock:
            first = self._first()
            if first is None:
                return
            batch = self._batch(first)
            jobs = [first] if batch is None else [first, *self._alike(batch, len(first.pictures))]
        started = time.perf_counter()
        for job in jobs:
            job.ticket.state = "deblurring"
        work = partial(self._one_by_one, first) if batch is None else partial(self._together, jobs, batch.size)
        _settle(jobs, work)
        self._note(jobs, time.perf_counter() - started)

    def _first(self) -> _Job | None:
        while self._waiting:
            job = self._waiting.popleft()
            if job.future.set_running_or_notify_cancel():
                return job
        return None

    def _batch(self, job: _Job) -> Batch | None:
        """What all pictures of a job may run together with; ``None`` if they may not."""
        try:
            batches = {self._deblurrer.batch(picture) for picture in job.pictures}
        except MsanError:
            return None  # it is told when the job runs
        batch = batches.pop() if len(batches) == 1 else None
        return None if batch is None or batch.size == 1 else batch

    def _alike(self, batch: Batch, pictures: int) -> Iterator[_Job]:
        """Jobs that wait and fill the batch up, taken out of the queue."""
        for job in tuple(self._waiting):
            if pictures + len(job.pictures) <= batch.size and self._batch(job) == batch:
                self._waiting.remove(job)
                if job.future.set_running_or_notify_cancel():
                    pictures += len(job.pictures)
                    yield job

    def _one_by_one(self, job: _Job) -> None:
        job.sharp += self._deblurrer.stream(job.pictures, job.ticket.note_tile)

    def _together(self, jobs: Sequence[_Job], size: int) -> None:
        """The pictures of all jobs, so many at a time; jobs of clients who are gone are left out."""
        places = [(job, number) for job in jobs for number in range(len(job.pictures))]
        for start in range(0, len(places), size):
            wanted = [(job, number) for job, number in places[start : start + size] if _is_wanted(job, number)]
            if wanted:
                sharp = self._deblurrer.deblur_batch([job.pictures[number] for job, number in wanted])
                for (job, _), picture in zip(wanted, sharp, strict=True):
                    job.sharp.append(picture)

    def _note(self, jobs: Sequence[_Job], seconds: float) -> None:
        area_px = sum(job.area_px for job in jobs)
        self.s_per_px += 0.2 * (seconds / max(area_px, 1) - self.s_per_px)
        for _ in jobs:
            self._metrics.note_stage("deblur", seconds)
        self._metrics.note_batch(len(jobs))


def _is_wanted(job: _Job, number: int) -> bool:
    try:
        job.ticket.note_tile(number, len(job.pictures))
    except ClientGoneError:
        return False
    return True


def _settle(jobs: Sequence[_Job], work: Callable[[], None]) -> None:
    """Do ``work`` and give each job's client its pictures, or why there are none."""
    try:
        work()
    except BaseException as error:  # whatever it is, somebody waits for each of these
        for job in jobs:
            job.future.set_exception(error)
        return
    for job in jobs:
        if len(job.sharp) == len(job.pictures):
            job.future.set_result(job.sharp)
        else:
            job.future.set_exception(ClientGoneError())
