"""The worker of a cluster: an actor that holds one deblurrer and does batches of tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from msan_runtime.batch import Outcome, deblur_files
from msan_runtime.cluster.cores import bind_to_cores
from msan_runtime.cluster.options import ClusterError, WorkerOptions
from msan_runtime.cluster.staging import Staging
from msan_runtime.cluster.stores import is_address
from msan_runtime.cluster.tasks import Report, Task, columns_of, tasks_of
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MsanError
from msan_runtime.jobs import Job
from msan_runtime.journal import model_digest

__all__ = ["MOST_ATTEMPTS", "Attempts", "Worker"]

MOST_ATTEMPTS = 4
"""How often a batch is begun whose worker or node dies before its end."""

LOST = f"died of {MOST_ATTEMPTS} workers: it may take more memory than a node has"


class Attempts:
    """Counts how often each batch was begun: an actor of its own, which outlives the workers.

    Ray gives the batch of a dead worker to another, without an end. What kills workers would kill them all.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """How often the batch that starts with the task ``number`` was begun, with this time."""
        self._counts[number] += 1
        return self._counts[number]


class Worker:
    """Deblurs the tasks of a batch, in order, and reports each. What is wrong with one file is in its report.

    What is wrong with the node itself (no backend, another model, folders that it does not see) is in the report
    of whatever task comes first, which is fatal: an exception of an actor's would come out as a stack of traces.
    """

    def __init__(self, options: WorkerOptions, attempts: Any) -> None:
        """Load the deblurrer; ``attempts`` is the handle of an actor of :class:`Attempts`."""
        self._options = options
        self._attempts = attempts
        self._node = socket.gethostname()
        self._notes = _Notes()
        self._deblurrer: Deblurrer | None = None
        self._problem = ""
        try:
            self._check_visible()
            _bind()
            self._deblurrer = self._load()
        except MsanError as error:
            self._problem = f"{self._node}: {error}"

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Reports for the tasks of a batch."""
        tasks = list(tasks_of(batch))
        if self._deblurrer is None:
            return columns_of([Report(number=tasks[0].number, error=self._problem, fatal=True, node=self._node)])
        if self._begun(tasks) > MOST_ATTEMPTS:
            return columns_of([Report(number=task.number, error=f"{task.source} {LOST}", lost=True) for task in tasks])
        reports: list[Report] = []
        try:
            done = self._staged if any(is_address(task.target) for task in tasks) else self._in_place
            reports += done(self._deblurrer, tasks)
        except MsanError as error:
            reports.append(Report(number=tasks[0].number, error=f"{self._node}: {error}", fatal=True))
        backend = self._deblurrer.backend.name
        reports[0] = dataclasses.replace(reports[0], node=self._node, backend=backend, notes=self._notes.taken())
        return columns_of([dataclasses.replace(one, node=self._node, backend=backend) for one in reports])

    def _begun(self, tasks: Sequence[Task]) -> int:
        import ray

        return int(ray.get(self._attempts.begin.remote(tasks[0].number)))

    def _load(self) -> Deblurrer:
        loading = self._options.loading
        deblurrer = loading.load()
        if model_digest(deblurrer.bundle.manifest) != self._options.model_sha256:
            deblurrer.close()
            raise ClusterError(f"the bundle {loading.bundle} is another model there. Give all nodes the same one")
        return deblurrer

    def _check_visible(self) -> None:
        for path in self._options.visible:
            if not Path(path).exists():
                seen = Path(path).parent if Path(path).name.endswith(".tmp") else path
                raise ClusterError(
                    f"{seen} is not seen there. Give folders that all nodes share under one name, or addresses like s3://"
                )

    def _in_place(self, deblurrer: Deblurrer, tasks: Sequence[Task]) -> Iterator[Report]:
        for task, outcome in zip(tasks, self._outcomes(deblurrer, map(_job, tasks)), strict=True):
            yield _report(task, outcome)

    def _staged(self, deblurrer: Deblurrer, tasks: Sequence[Task]) -> list[Report]:
        with Staging(tasks) as staging:
            sent: list[Future[Report]] = []
            for task, outcome in zip(tasks, self._outcomes(deblurrer, staging.jobs()), strict=True):
                sent.append(staging.sent(outcome, _report(task, outcome)))
            return [one.result() for one in sent]

    def _outcomes(self, deblurrer: Deblurrer, jobs: Iterable[Job]) -> Iterable[Outcome]:
        return deblur_files(deblurrer, jobs, options=self._options.files, workers=self._options.threads)


class _Notes(logging.Handler):
    """Keeps what the library logs, for the next report."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []
        logging.getLogger("msan_runtime").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(" ".join(record.getMessage().split()))

    def taken(self) -> str:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return "\n".join(lines)


def _job(task: Task) -> Job:
    comparison = Path(task.comparison) if task.comparison else None
    return Job(source=Path(task.source), target=Path(task.target), comparison=comparison)


def _report(task: Task, outcome: Outcome) -> Report:
    sizes = [0, 0]
    if outcome.error is None:
        with contextlib.suppress(OSError):
            sizes = [path.stat().st_size for path in outcome.job.results]
    return Report(
        number=task.number,
        error=outcome.error or "",
        seconds=outcome.seconds,
        target_bytes=sizes[0],
        comparison_bytes=sum(sizes[1:]),
    )


def _bind() -> None:
    """Take as many cores as Ray has counted for this actor, if a CPU is what it computes on."""
    import ray

    given: Mapping[str, float] = ray.get_runtime_context().get_assigned_resources()
    if not given.get("GPU"):
        bind_to_cores(max(int(given.get("CPU", 0)), 1))
