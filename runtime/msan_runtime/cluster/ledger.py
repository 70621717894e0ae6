"""What is to be done of a plan, and the noting of what was: local folders, with the journal of the plain run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from msan_runtime.batch import state_if_due
from msan_runtime.cluster.tasks import Ended, Report, Task
from msan_runtime.errors import PictureError
from msan_runtime.jobs import Job, Plan
from msan_runtime.journal import Journal, SourceState

__all__ = ["Ledger", "LocalLedger"]

SEEN_WITHIN_S = 10.0
"""How long a network file system may hide from one machine what another has just written."""


class Ledger(Protocol):
    """Knows the files of a run. Only the process that was started has one: the journal has one writer."""

    def __iter__(self) -> Iterator[Task | Ended]:
        """A task for each file that is to be done; what became of those where there is nothing to do."""
        ...

    def settle(self, task: Task, report: Report) -> Ended:
        """Note what a worker reports of a task."""
        ...


class LocalLedger:
    """The files of a plan of local paths, which all nodes see."""

    def __init__(self, plan: Plan, journal: Journal | None, *, skip_existing: bool) -> None:
        self._plan = plan
        self._journal = journal
        self._skip_existing = skip_existing
        self._states: dict[int, SourceState] = {}

    def __iter__(self) -> Iterator[Task | Ended]:
        for number, job in enumerate(self._plan):
            try:
                yield self._sorted(number, job)
            except PictureError as error:
                yield self._failed(job, str(error))

    def settle(self, task: Task, report: Report) -> Ended:
        job = self._plan[task.number]
        state = self._states.pop(task.number)
        if report.error:
            return self._failed(job, report.error.replace(task.source, str(job.source)))
        _wait_for(job.results)
        if self._journal is not None:
            # A line that a power cut takes costs doing the file again; waiting for the disk at each would bound the
            # whole cluster.
            self._journal.note_done(job, state, durable=False)
        return Ended()

    def _sorted(self, number: int, job: Job) -> Task | Ended:
        if job.problem is not None:
            raise PictureError(job.problem)
        state = state_if_due(job, self._journal, skip_existing=self._skip_existing)
        if state is None:
            return Ended(kept=True)
        self._states[number] = state
        if self._journal is not None:
            self._journal.note_started(job)
        return Task(
            number=number,
            source=str(job.source.absolute()),
            target=str(job.target.absolute()),
            comparison=str(job.comparison.absolute()) if job.comparison else "",
        )

    def _failed(self, job: Job, reason: str) -> Ended:
        if self._journal is not None:
            self._journal.note_failed(job, reason)
        return Ended(error=reason)


def _wait_for(paths: tuple[Path, ...]) -> None:
    """Wait until this machine sees ``paths`` too."""
    end = time.monotonic() + SEEN_WITHIN_S
    while not all(path.exists() for path in paths) and time.monotonic() < end:
        os.listdir(paths[0].parent)  # noqa: PTH208 - asks the server anew, where a look at the name alone does not
        time.sleep(0.1)
