"""Addresses by way of a temporary folder: the next files are fetched and the last results sent meanwhile."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from msan_runtime.batch import Outcome
from msan_runtime.cluster.stores import Store, open_store
from msan_runtime.cluster.tasks import Report, Task
from msan_runtime.errors import PictureError
from msan_runtime.jobs import Job

__all__ = ["Staging"]

TRANSFERS = 8
"""Files on their way at once, each direction: a store answers slowly, and many at a time."""


class Staging:
    """The temporary folder of a batch of tasks; a context manager."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.number: task for task in tasks}
        self._folder = Path(tempfile.mkdtemp(prefix="msan-ray-"))
        self._fetching = ThreadPoolExecutor(TRANSFERS, "msan-fetch")
        self._sending = ThreadPoolExecutor(TRANSFERS, "msan-send")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fetching.shutdown(cancel_futures=True)
        self._sending.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def jobs(self) -> Iterator[Job]:
        """A job for each task, in order, with its source fetched."""
        tasks = iter(self._tasks.values())
        ahead = deque(self._fetching.submit(self._fetch, task) for task in itertools.islice(tasks, TRANSFERS))
        while ahead:
            job = ahead.popleft().result()
            ahead += [self._fetching.submit(self._fetch, task) for task in itertools.islice(tasks, 1)]
            yield job

    def sent(self, outcome: Outcome, report: Report) -> Future[Report]:
        """Send the results of ``outcome``; gives ``report`` with their sizes, or why they were not sent."""
        return self._sending.submit(self._send, outcome.job, report)

    def _fetch(self, task: Task) -> Job:
        job = self._job(task)
        try:
            job.source.parent.mkdir(parents=True)
            job.source.write_bytes(_at(task.source, Store.read))
        except PictureError as error:
            return replace(job, problem=str(error))
        return job

    def _job(self, task: Task) -> Job:
        folder = self._folder / str(task.number)
        return Job(
            source=folder / "in" / PurePosixPath(task.source).name,
            target=folder / "out" / PurePosixPath(task.target).name,
            comparison=folder / "out" / PurePosixPath(task.comparison).name if task.comparison else None,
        )

    def _send(self, job: Job, report: Report) -> Report:
        task = self._tasks[report.number]
        words = report.error.replace(str(job.source), task.source).replace(str(job.target), task.target)
        report = replace(report, error=words)
        try:
            if not words:
                for path, address in zip(job.results, (task.target, task.comparison), strict=False):
                    _send(path, address)
        except PictureError as error:
            report = replace(report, error=str(error))
        shutil.rmtree(job.source.parents[1], ignore_errors=True)
        return report


def _at(address: str, action: Callable[[Store, str], bytes]) -> bytes:
    store = open_store(address.partition("://")[0])
    return action(store, store.path(address))


def _send(path: Path, address: str) -> None:
    store = open_store(address.partition("://")[0])
    store.write(store.path(address), path.read_bytes())
