"""The journal of an output folder: which results are whole, so that a run that was killed goes on.

``.msan-journal.jsonl`` has a line for the model and the settings, then for each file one before its
result is written, and one when that has reached the disk, or with the reason why there is none. What
follows the last line of settings counts as done; the names of earlier results stay known, so that no
run takes them for pictures to deblur. A line that was cut short by a kill is dropped. The file is
locked while a run writes to the folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from msan_runtime.errors import MsanError
from msan_runtime.jobs import Job
from msan_runtime.locks import try_lock
from msan_runtime.manifest import Manifest

__all__ = ["JOURNAL_NAME", "Journal", "JournalError", "Run", "SourceState", "model_digest", "recorded_results"]

JOURNAL_NAME = ".msan-journal.jsonl"
JOURNAL_VERSION = 1

logger = logging.getLogger(__name__)


class JournalError(MsanError):
    """An output folder that another run is writing to, or that holds the results of a different one."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all results of a folder have in common.

    Attributes:
        model: the bundle's name, for people.
        model_sha256: what the bundle computes (:func:`model_digest`).
        settings: what else the results depend on, by its name for people; ``None`` for a default.
    """

    model: str
    model_sha256: str
    settings: Mapping[str, str | float | None] = field(default_factory=dict[str, str | float | None])


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """A source file as it was before it was read."""

    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The state of the file at ``path``.

        Raises:
            OSError: if there is none.
        """
        status = path.stat()
        return cls(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


class Journal:
    """Knows what is done in an output folder, and notes what gets done. Any thread may note.

    A context manager: the folder belongs to this run until the end of the block.
    """

    def __init__(self, folder: Path, file: BinaryIO, done: dict[str, bytes]) -> None:
        self.folder = folder
        self._file = file
        self._done = done
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, run: Run, *, restart: bool = False) -> Self:
        """Take the folder for ``run``; what is done in it counts if model and settings are the same.

        Args:
            folder: it must exist.
            run: what the results will have in common.
            restart: forget what is done, also by another model or with other settings.

        Raises:
            JournalError: if another run is at work in the folder, or the results in it are of another
                model or other settings.
            OSError: if the journal cannot be read or written.
        """
        file = (folder / JOURNAL_NAME).open("a+b")
        try:
            _take(file, folder)
            _drop_torn_line(file)
            header, done = _read(file)
            if done and not restart:
                _check_same(header, run, folder)
                return cls(folder, file, done)
            journal = cls(folder, file, {})
            if restart or header != _header_of(run):
                journal._append(_header_of(run))
            return journal
        except BaseException:
            file.close()
            raise

    def is_done(self, job: Job, source: SourceState) -> bool:
        """Whether the results of ``job`` are there, whole, and of the source as it is now."""
        if self._relative(job.target) not in self._done:
            return False
        try:
            return self.knows(self._entry(job, source))
        except OSError:  # a result is not there
            return False

    def knows(self, entry: Mapping[str, Any]) -> bool:
        """Whether ``entry`` is the last line of its ``target``: the same source gave the same result."""
        return self._done.get(entry["target"]) == _digest(entry)

    def note_started(self, job: Job) -> None:
        """Note that the results of ``job`` are about to be written: should a kill come before
        :meth:`note_done`, it is known that they are results. It survives a kill, not a power cut.

        Raises:
            OSError: if the journal cannot be written.
        """
        self._append({"starts": [self._relative(path) for path in job.results]}, durable=False)

    def note_done(self, job: Job, source: SourceState, *, durable: bool = True) -> None:
        """Note that the results of ``job`` are on the disk.

        Raises:
            OSError: if the journal cannot be written.
        """
        self.note(self._entry(job, source), durable=durable)

    def note(self, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        """Add a line; it survives a kill, and a power cut if it is ``durable``.

        :meth:`note_done` and :meth:`note_failed` make it of a job whose files are at hand.

        Raises:
            OSError: if the journal cannot be written.
        """
        self._append(entry, durable=durable)

    def note_failed(self, job: Job, reason: str) -> None:
        """Note why ``job`` has no result. The next run tries again.

        Raises:
            OSError: if the journal cannot be written.
        """
        self._append({"source": self._relative(job.source), "error": reason})

    def close(self) -> None:
        """Leave the folder to other runs."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, job: Job, source: SourceState) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "source": self._relative(job.source),
            "bytes": source.size_bytes,
            "mtime_ns": source.mtime_ns,
            "target": self._relative(job.target),
            "target_bytes": job.target.stat().st_size,
        }
        if job.comparison is not None:
            entry |= {
                "comparison": self._relative(job.comparison),
                "comparison_bytes": job.comparison.stat().st_size,
            }
        return entry

    def _relative(self, path: Path) -> str:
        """The path from the folder, so that inputs and results may be moved together."""
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # another drive of Windows
            return path.absolute().as_posix()

    def _append(self, entry: Mapping[str, Any], *, durable: bool = True) -> None:
        with self._lock:
            self._file.write(_line(entry))
            self._file.flush()
            if durable:
                os.fsync(self._file.fileno())


def model_digest(manifest: Manifest) -> str:
    """SHA-256 of what a bundle computes: of its graphs, not of engines that were added for a machine."""
    graphs = {graph.path for graph in manifest.graphs}
    hashes = sorted(file.sha256 for file in manifest.files if file.path in graphs)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def recorded_results(folder: Path) -> Iterator[Path]:
    """Every result that the journal of ``folder`` knows, some twice; none if there is no journal."""
    try:
        with (folder / JOURNAL_NAME).open("rb") as file:
            for entry in _entries(file):
                started = entry.get("starts")
                names = [entry.get("target"), entry.get("comparison"), *(started if isinstance(started, list) else [])]
                yield from (folder / name for name in names if isinstance(name, str))
    except OSError:
        return


def _take(file: BinaryIO, folder: Path) -> None:
    """Lock the journal.

    Raises:
        JournalError: if another run has it.
    """
    try:
        free = try_lock(file.fileno())
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second run into it", folder, error.strerror)
        return
    if not free:
        raise JournalError(f"another run is writing to {folder}. Wait for its end, or choose another -o")


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut the file after its last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - 4096, 0)
        file.seek(start)
        last = file.read(end - start).rfind(b"\n")
        if last >= 0:
            file.truncate(start + last + 1)
            return
        end = start
    file.truncate(0)


def _read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The last line of model and settings, and what was done since: for each result the digest of its
    last line, which is all that a comparison needs."""
    header: dict[str, Any] = {}
    done: dict[str, bytes] = {}
    file.seek(0)
    for entry in _entries(file):
        target = entry.get("target")
        if "journal" in entry:
            header, done = entry, {}
        elif isinstance(target, str):
            done[target] = _digest(entry)
    return header, done


def _check_same(header: Mapping[str, Any], run: Run, folder: Path) -> None:
    ways_out = "Give --restart to do all of it again, or choose another -o"
    if header.get("journal") != JOURNAL_VERSION:
        raise JournalError(f"{folder / JOURNAL_NAME} was written by another version of msan. {ways_out}")
    if header.get("model_sha256") != run.model_sha256:
        theirs = f"{header.get('model')} ({str(header.get('model_sha256'))[:8]})"
        ours = f"{run.model} ({run.model_sha256[:8]})"
        raise JournalError(f"{folder} holds results of the model {theirs}, this run has {ours}. {ways_out}")
    theirs, ours = header.get("settings"), dict(run.settings)
    if theirs != ours:
        raise JournalError(f"{folder} holds results with other settings: {_differences(theirs, ours)}. {ways_out}")


def _differences(theirs: object, ours: Mapping[str, Any]) -> str:
    known: dict[str, Any] = dict(theirs) if isinstance(theirs, dict) else {}
    names = [name for name in {**known, **ours} if known.get(name) != ours.get(name)]
    return ", ".join(f"{name} {_value(known.get(name))}, now {_value(ours.get(name))}" for name in names)


def _value(value: object) -> str:
    words = {None: "by default", True: "on", False: "off"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _entries(file: BinaryIO) -> Iterator[dict[str, Any]]:
    return (entry for line in file if (entry := _parsed(line)) is not None)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The entry of a whole line; ``None`` for a torn or damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return dict(entry) if isinstance(entry, dict) else None


def _header_of(run: Run) -> dict[str, Any]:
    return {
        "journal": JOURNAL_VERSION,
        "model": run.model,
        "model_sha256": run.model_sha256,
        "settings": dict(run.settings),
    }


def _line(entry: Mapping[str, Any]) -> bytes:
    # ASCII, so that names that are not UTF-8 pass through.
    return json.dumps(entry).encode("ascii") + b"\n"


def _digest(entry: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(_line(entry), digest_size=16).digest()
