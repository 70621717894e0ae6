"""The run: tasks as a data set of Ray Data, mapped by a pool of workers, and each file's end noted once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msan_runtime.cluster.ledger import Ledger
from msan_runtime.cluster.options import ClusterError, RayOptions, WorkerOptions
from msan_runtime.cluster.session import Pool, plan_pool, ray_session
from msan_runtime.cluster.tasks import Ended, Report, Task
from msan_runtime.cluster.worker import Attempts, Worker
from msan_runtime.video import VIDEO_SUFFIXES

__all__ = ["RunStats", "deblur_on_ray"]

MOST_TASKS_PER_BLOCK = 32
BLOCKS_PER_WORKER = 8
"""So many at least, where there are files enough: the last ones to finish then wait little for each other."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RunStats:
    """What a run took.

    Attributes:
        first_report_seconds: from the start until the first file was done: Ray, workers and networks loaded.
        files: how many were done, by node and backend.
    """

    first_report_seconds: float = 0.0
    files: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])


def deblur_on_ray(
    ledger: Ledger, ray_options: RayOptions, worker_options: WorkerOptions, stats: RunStats | None = None
) -> Generator[Ended]:
    """Deblur the files of ``ledger`` on the workers of a cluster.

    A worker or node that dies costs time alone: what it had is done by another. A result is put in its place whole,
    so that doing it twice leaves one. Files that workers die of are tried by themselves, then reported as failed.
    Closing the iterator ends the run.

    Args:
        ledger: knows the files and keeps the journal.
        ray_options: where Ray is, and the pool of workers.
        worker_options: what each worker loads.
        stats: filled with what the run took.

    Yields:
        What became of each file, in the order of their ends.

    Raises:
        MissingExtraError: without Ray.
        ClusterError: if there is no such cluster, or a node of it cannot do what is asked.
        OSError: if the journal cannot be written.
    """
    stats = stats or RunStats()
    started = time.perf_counter()
    waiting: dict[int, Task] = {}
    for item in ledger:
        if isinstance(item, Ended):
            yield item
        else:
            waiting[item.number] = item
    if not waiting:
        return
    with ray_session(ray_options) as ray:
        pool = plan_pool(ray, ray_options)
        for per_block in dict.fromkeys((_tasks_per_block(list(waiting.values()), pool), 1)):
            for report in _reports(ray, list(waiting.values()), per_block, pool, worker_options):
                stats.first_report_seconds = stats.first_report_seconds or time.perf_counter() - started
                if report.number in waiting and not (report.lost and per_block > 1):
                    stats.files[report.node, report.backend] += 1
                    yield ledger.settle(waiting.pop(report.number), report)


def _tasks_per_block(tasks: Sequence[Task], pool: Pool) -> int:
    """How many files a worker is given at a time; one where there are videos, which may take hours."""
    if any(task.source.lower().endswith(tuple(VIDEO_SUFFIXES)) for task in tasks):
        return 1
    return min(max(len(tasks) // (BLOCKS_PER_WORKER * pool.most), 1), MOST_TASKS_PER_BLOCK)


def _reports(
    ray: Any, tasks: Sequence[Task], per_block: int, pool: Pool, worker_options: WorkerOptions
) -> Iterator[Report]:
    """What workers report of ``tasks``, as it comes.

    Raises:
        ClusterError: what a worker says of itself or of its node.
    """
    if not tasks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    told: set[tuple[str, str]] = set()
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    blocks = -(-len(tasks) // per_block)
    reports = ray.data.from_items([asdict(task) for task in tasks], override_num_blocks=blocks).map_batches(
        Worker,
        fn_constructor_args=(worker_options, attempts),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=min(pool.fewest, blocks), max_size=min(pool.most, blocks)),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    for row in reports.iter_rows():
        report = Report.of_row(row)
        if report.fatal:
            raise ClusterError(report.error)
        _tell(report, told)
        yield report


def _tell(report: Report, told: set[tuple[str, str]]) -> None:
    """Say once for each node what it runs on; and why, and whatever else was noted there."""
    lines = [f"runs on {report.backend}", *report.notes.splitlines()]
    for line in lines:
        if report.backend and (report.node, line) not in told:
            told.add((report.node, line))
            logger.warning("%s: %s", report.node, line)
