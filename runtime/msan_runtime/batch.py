"""Many files: read, deblurred and written at the same time, and what became of each."""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

from msan_runtime.compare import side_by_side
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MsanError, PictureError
from msan_runtime.image import DEFAULT_MAX_PIXELS, EncodeOptions, Picture, read_picture, write_picture
from msan_runtime.jobs import Job
from msan_runtime.journal import Journal, SourceState
from msan_runtime.machine import usable_cores
from msan_runtime.pipeline import StageTimes, overlapped
from msan_runtime.video import VideoOptions, VideoProgress, deblur_video

__all__ = ["FileOptions", "Outcome", "deblur_files", "default_workers", "state_if_due"]

MOST_WORKERS = 4
CORES_PER_WORKER = 4

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

logger = logging.getLogger(__name__)

VideoListener = Callable[[Job, VideoProgress], None]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How files are read and written.

    Attributes:
        encode: how pictures are encoded.
        video: how videos are encoded, and which part of them.
        max_pixels: larger pictures are refused.
        skip_existing: leave out a file whose result is there, whatever it was made of.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    video: VideoOptions = field(default_factory=VideoOptions)
    max_pixels: int = DEFAULT_MAX_PIXELS
    skip_existing: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: which one.
        seconds: how long reading, deblurring and writing took together.
        error: why there is no result, or ``None``.
        kept: whether the result was there before and nothing was done.
    """

    job: Job
    seconds: float
    error: str | None = None
    kept: bool = False


def default_workers() -> int:
    """Threads for reading, and as many for writing, that keep up with a device and leave cores to a CPU backend."""
    return min(max(usable_cores() // CORES_PER_WORKER, 1), MOST_WORKERS)


def deblur_files(
    deblurrer: Deblurrer,
    jobs: Iterable[Job],
    *,
    options: FileOptions | None = None,
    journal: Journal | None = None,
    workers: int | None = None,
    times: StageTimes | None = None,
    on_video: VideoListener | None = None,
) -> Generator[Outcome]:
    """Deblur files: the next ones are read and the last ones written meanwhile. A bad one does not stop the rest.

    In memory are at most ``2 * workers + 3`` pictures and their results. Closing the iterator ends the
    run when what was deblurred is written.

    Args:
        deblurrer: what deblurs, in the thread that iterates.
        jobs: from :func:`msan_runtime.jobs.plan_jobs`.
        options: how files are read and written.
        journal: of the output folder; what is done there is not done again.
        workers: threads for reading, and as many for writing; by the number of cores if left out.
        times: filled with what the stages took.
        on_video: told how far a video is, in the thread that iterates.

    Yields:
        An outcome for each job, in order.

    Raises:
        PictureError: if the disk is full or read-only.
        OSError: if the journal cannot be written.
    """
    workers = workers or default_workers()
    stages = _Stages(deblurrer, options or FileOptions(), journal, on_video)
    return overlapped(
        jobs,
        before=stages.read,
        run=stages.deblur,
        after=stages.write,
        readers=workers,
        writers=workers,
        depth=workers + 1,
        times=times,
    )


def state_if_due(job: Job, journal: Journal | None, *, skip_existing: bool = False) -> SourceState | None:
    """The source of ``job`` as it is now; ``None`` if its result is there and is to be kept.

    Raises:
        PictureError: if the source cannot be read.
    """
    if skip_existing and all(path.exists() for path in job.results):
        return None
    state = _state_of(job)
    return None if journal is not None and journal.is_done(job, state) else state


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A job on its way: what is known of it so far. Once ``error`` or ``kept`` is set, nothing more is done."""

    job: Job
    seconds: float = 0.0
    state: SourceState | None = None
    picture: Picture | None = None
    sharp: PictureArray | None = None
    error: str | None = None
    kept: bool = False

    @property
    def ended(self) -> bool:
        return self.kept or self.error is not None


class _Stages:
    """The three stages of :func:`deblur_files`; what is wrong with one file ends that one."""

    def __init__(
        self, deblurrer: Deblurrer, options: FileOptions, journal: Journal | None, on_video: VideoListener | None
    ) -> None:
        self._deblurrer = deblurrer
        self._options = options
        self._journal = journal
        self._on_video = on_video

    def read(self, job: Job) -> _Work:
        return _tried(self._read, _Work(job=job, error=job.problem))

    def deblur(self, work: _Work) -> _Work:
        return _tried(self._deblur, work)

    def write(self, work: _Work) -> Outcome:
        work = _tried(self._write, work)
        if self._journal is not None and work.error is not None:
            self._journal.note_failed(work.job, work.error)
        return Outcome(job=work.job, seconds=work.seconds, error=work.error, kept=work.kept)

    def _read(self, work: _Work) -> _Work:
        job = work.job
        state = state_if_due(job, self._journal, skip_existing=self._options.skip_existing)
        if state is None:
            return dataclasses.replace(work, kept=True)
        if job.is_video:
            return dataclasses.replace(work, state=state)
        picture = read_picture(job.source, deep=True, max_pixels=self._options.max_pixels)
        return dataclasses.replace(work, state=state, picture=picture)

    def _deblur(self, work: _Work) -> _Work:
        if work.picture is not None:
            sharp = self._deblurrer.deblur(work.picture.pixels)
            # While the result is written, the blurred pixels are held only where a sheet of both asks for them.
            kept = work.picture if work.job.comparison else dataclasses.replace(work.picture, pixels=sharp)
            return dataclasses.replace(work, picture=kept, sharp=sharp)
        self._deblur_video(work.job)
        return work

    def _deblur_video(self, job: Job) -> None:
        listener = self._on_video
        told = None if listener is None else lambda progress: listener(job, progress)
        self._note_started(job)
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            summary = deblur_video(self._deblurrer, job.source, job.target, self._options.video, on_progress=told)
        except OSError as error:
            raise PictureError(f"cannot write {job.target}: {error.strerror}") from error
        if summary.damaged:
            logger.warning("%s has %d damaged places", job.source, summary.damaged)

    def _write(self, work: _Work) -> _Work:
        job = work.job
        if work.picture is not None and work.sharp is not None:
            self._note_started(job)
            write_picture(job.target, dataclasses.replace(work.picture, pixels=work.sharp), self._options.encode)
            if job.comparison is not None:
                _write_comparison(job, work.picture, work.sharp)
        if self._journal is not None and work.state is not None:
            self._journal.note_done(job, work.state)
        return work

    def _note_started(self, job: Job) -> None:
        if self._journal is not None:
            self._journal.note_started(job)


def _tried(stage: Callable[[_Work], _Work], work: _Work) -> _Work:
    """``work`` after ``stage``, with the time that it took, or with the reason why it failed.

    Raises:
        PictureError: if it failed for a reason that all further files share.
    """
    if work.ended:
        return work
    started = time.perf_counter()
    try:
        work = stage(work)
    except MsanError as error:
        if _disk_is_full(error):
            raise PictureError(f"{error}. Make room and give the command again: it goes on from here") from error
        work = dataclasses.replace(work, error=str(error))
    except MemoryError:
        work = dataclasses.replace(work, error=f"{work.job.source} does not fit into this machine's memory")
    return dataclasses.replace(work, seconds=work.seconds + time.perf_counter() - started)


def _disk_is_full(error: MsanError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK


def _state_of(job: Job) -> SourceState:
    try:
        return SourceState.of(job.source)
    except OSError as error:
        raise PictureError(f"{job.source} cannot be read: {error.strerror}") from error


def _write_comparison(job: Job, picture: Picture, sharp: PictureArray) -> None:
    if job.comparison is None:
        return
    profile = None if picture.grey else picture.icc  # a grey profile does not fit a coloured sheet
    write_picture(job.comparison, Picture(pixels=side_by_side(picture.pixels, sharp), icc=profile))
