"""The files of a run between addresses: found, named, and noted in a journal of parts in the target's folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msan_runtime.cluster.stores import Store, StoredFile, is_address, open_store
from msan_runtime.cluster.tasks import Ended, Report, Task
from msan_runtime.errors import PictureError
from msan_runtime.jobs import MEDIA_SUFFIXES, Job, Plan, refuse_twins
from msan_runtime.journal import JOURNAL_NAME, Journal, JournalError, Run
from msan_runtime.naming import Naming

__all__ = ["PARTS", "AddressLedger", "AddressPlan", "StoreJournal", "plan_addresses"]

PARTS = ".msan-journal"
"""The journal's folder: an object cannot be added to, so each part of the journal is one."""

SECONDS_PER_PART = 10.0


@dataclass(frozen=True, kw_only=True)
class AddressPlan:
    """What goes where between stores.

    Attributes:
        target: the store of the results.
        folder: their folder there.
        jobs: by paths in the stores, without protocol.
        sources: for each job, the store and the file; ``None`` where it has a problem.
    """

    target: Store
    folder: str
    jobs: Plan
    sources: Sequence[tuple[Store, StoredFile] | None]


def plan_addresses(inputs: Sequence[str], output: str, *, naming: Naming, compare: bool = False) -> AddressPlan:
    """Decide where each result goes, by the rules of :func:`msan_runtime.jobs.plan_jobs`; ``output`` is a folder.

    Args:
        inputs: files and folders; addresses, or local paths.
        output: an address, or a local path; the folder need not exist.
        naming: of results.
        compare: whether before/after pictures will be written too.

    Raises:
        PictureError: if a store does not answer, there is a problem with every input, two results would have one
            name, or the results would lie among the sources.
    """
    target, folder = _opened(output)
    if PurePosixPath(folder).suffix.lower() in MEDIA_SUFFIXES:
        raise PictureError(f"{output} is one file. Give a folder as -o: between addresses there is no other result")
    found = [entry for text in inputs for entry in _found(*_opened(text), target.address(folder))]
    problems = [job.problem for job, _ in found if isinstance(job, Job) and job.problem]
    if len(problems) == len(found):
        raise PictureError("; ".join(problems))
    jobs = Plan([entry for entry, _ in found], Path(folder), naming, many=True, compare=compare)
    refuse_twins(jobs, Path.as_posix)
    return AddressPlan(target=target, folder=folder, jobs=jobs, sources=[source for _, source in found])


class StoreJournal:
    """A journal in a store: the lines of :class:`msan_runtime.journal.Journal`, in parts that are written every ten
    seconds and at the end. What a kill loses of it is done again. No lock keeps a second run from the folder.
    """

    def __init__(self, store: Store, folder: str, run: Run, *, restart: bool) -> None:
        """Read what is there.

        Raises:
            JournalError: as :meth:`msan_runtime.journal.Journal.open`.
            PictureError: if the store does not answer.
        """
        self._store = store
        self._parts = f"{folder}/{PARTS}"
        self._local = tempfile.TemporaryDirectory(prefix="msan-journal-")
        file = Path(self._local.name) / JOURNAL_NAME
        parts = [part.path for part in store.files(self._parts)]
        file.write_bytes(b"".join(map(store.read, parts)))
        self._sent = file.stat().st_size
        self._next = 1 + max((int(PurePosixPath(part).stem) for part in parts), default=0)
        try:
            self._journal = Journal.open(file.parent, run, restart=restart)
        except JournalError as error:
            raise JournalError(str(error).replace(str(file.parent), store.address(folder))) from error
        self._file = file
        self._due = 0.0
        self.send()

    def knows(self, entry: dict[str, Any]) -> bool:
        """Whether that source gave that result."""
        return self._journal.knows(entry)

    def note(self, entry: dict[str, Any]) -> None:
        """Add a line, and write a part if one is due."""
        self._journal.note(entry, durable=False)
        if time.monotonic() >= self._due:
            self.send()

    def send(self) -> None:
        """Write the lines since the last part as a new one."""
        self._due = time.monotonic() + SECONDS_PER_PART
        with self._file.open("rb") as file:
            file.seek(self._sent)
            lines = file.read()
        if lines:
            self._store.write(f"{self._parts}/{self._next:08d}.jsonl", lines)
            self._next += 1
            self._sent += len(lines)

    def close(self) -> None:
        """Write the last part."""
        try:
            self.send()
        finally:
            self._journal.close()
            self._local.cleanup()


class AddressLedger:
    """The files of a plan of addresses."""

    def __init__(self, plan: AddressPlan, journal: StoreJournal, *, skip_existing: bool) -> None:
        self._plan = plan
        self._journal = journal
        self._skip_existing = skip_existing
        files = plan.target.files(plan.folder)
        plan.target.remove_abandoned(files)
        self._there = {file.path: file.size_bytes for file in files}

    def __iter__(self) -> Iterator[Task | Ended]:
        for number, (job, source) in enumerate(zip(self._plan.jobs, self._plan.sources, strict=True)):
            yield self._sorted(number, job, source)

    def settle(self, task: Task, report: Report) -> Ended:
        if report.error:
            return self._failed(task.source, report.error)
        self._journal.note(self._entry(task, report.target_bytes, report.comparison_bytes))
        return Ended()

    def _sorted(self, number: int, job: Job, source: tuple[Store, StoredFile] | None) -> Task | Ended:
        if source is None:
            return self._failed(job.source.as_posix(), job.problem or "")
        target = self._plan.target
        task = Task(
            number=number,
            source=source[0].address(source[1].path),
            target=target.address(job.target.as_posix()),
            comparison=target.address(job.comparison.as_posix()) if job.comparison else "",
        )
        return Ended(kept=True) if self._is_kept(task, job) else task

    def _is_kept(self, task: Task, job: Job) -> bool:
        sizes = [self._there.get(path.as_posix()) for path in job.results]
        if None in sizes:
            return False
        return self._skip_existing or self._journal.knows(self._entry(task, *(size or 0 for size in sizes)))

    def _entry(self, task: Task, target_bytes: int, comparison_bytes: int = 0) -> dict[str, Any]:
        source = self._plan.sources[task.number]
        entry: dict[str, Any] = {"source": task.source}
        if source is not None:
            entry |= {"bytes": source[1].size_bytes, "mtime_ns": source[1].mtime_ns}
        entry |= {"target": self._relative(task.target), "target_bytes": target_bytes}
        if task.comparison:
            entry |= {"comparison": self._relative(task.comparison), "comparison_bytes": comparison_bytes}
        return entry

    def _relative(self, address: str) -> str:
        return address.removeprefix(self._plan.target.address(self._plan.folder) + "/")

    def _failed(self, source: str, reason: str) -> Ended:
        reason = reason.replace(source, _name_of(source))
        self._journal.note({"source": source, "error": reason})
        return Ended(error=reason)


def _opened(text: str) -> tuple[Store, str]:
    """The store of an address or a local path, and the path in it."""
    address = text if is_address(text) else f"file://{Path(text).absolute().as_posix()}"
    store = open_store(address.partition("://")[0])
    return store, store.path(address)


def _name_of(address: str) -> str:
    """An address for people: local files by their paths."""
    return address.removeprefix("file://")


_Found = tuple[tuple[Path, str] | Job, tuple[Store, StoredFile] | None]


def _found(store: Store, path: str, output: str) -> Iterator[_Found]:
    """The files of an input, without those in the folder of the results."""
    if store.address(path) == output:
        raise PictureError(f"{output} is an input. Give another folder as -o")
    kind = store.kind(path)
    if kind == "file":
        file = store.file(path)
        yield _entry(store, path.rpartition("/")[0], file)
        return
    files = [
        file
        for file in (store.files(path) if kind else [])
        if PurePosixPath(file.path).suffix.lower() in MEDIA_SUFFIXES
        and not store.address(file.path).startswith(f"{output}/")
    ]
    if not files:
        where = _name_of(store.address(path))
        words = f"no JPEG, PNG, WebP or TIFF picture in {where}, and no video" if kind else f"no file or folder {where}"
        yield Job(source=Path(path), target=Path(path), problem=words), None
    yield from (_entry(store, path, file) for file in files)


def _entry(store: Store, folder: str, file: StoredFile) -> _Found:
    relative = file.path.removeprefix(f"{folder}/")
    if PurePosixPath(relative).as_posix() != relative or ".." in PurePosixPath(relative).parts:
        problem = f"{store.address(file.path)} has a name that no folder can hold"
        return Job(source=Path(file.path), target=Path(file.path), problem=problem), None
    return (Path(folder), relative), (store, file)
