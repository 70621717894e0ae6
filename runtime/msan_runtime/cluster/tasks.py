"""What travels between the process that keeps the journal and the workers: tasks there, reports back, as rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Ended", "Report", "Task", "columns_of", "tasks_of"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A file to deblur.

    Attributes:
        number: its place in the plan.
        source, target: absolute paths; or addresses, then both.
        comparison: where the before/after picture goes, or ``""``.
    """

    number: int
    source: str
    target: str
    comparison: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says of a task.

    Attributes:
        number: of the task.
        error: why there is no result, or ``""``.
        fatal: whether no other task can go better: ``error`` ends the run.
        lost: whether workers died of the tasks that it was given with; nobody tried again.
        seconds: how long reading, deblurring and writing took together.
        target_bytes, comparison_bytes: sizes of the results; 0 where there are none.
        node, backend: the machine's name, and what the network runs on there.
        notes: what the worker's libraries noted since its last report, one a line.
    """

    number: int
    error: str = ""
    fatal: bool = False
    lost: bool = False
    seconds: float = 0.0
    target_bytes: int = 0
    comparison_bytes: int = 0
    node: str = ""
    backend: str = ""
    notes: str = ""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """The report that a row of Ray Data holds."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a file, once and for all.

    Attributes:
        error: why there is no result, or ``None``.
        kept: whether the result was there before and nothing was done.
    """

    error: str | None = None
    kept: bool = False


def columns_of(reports: Sequence[Report]) -> dict[str, list[Any]]:
    """Reports as a batch of Ray Data."""
    return {field.name: [getattr(one, field.name) for one in reports] for field in dataclasses.fields(Report)}


def tasks_of(batch: Mapping[str, Sequence[Any]]) -> Iterator[Task]:
    """The tasks that a batch of Ray Data holds."""
    for number, source, target, comparison in zip(
        batch["number"], batch["source"], batch["target"], batch["comparison"], strict=True
    ):
        yield Task(number=int(number), source=str(source), target=str(target), comparison=str(comparison))
