"""Many picture files: what goes where, and what became of each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msan_runtime.compare import side_by_side
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MsanError, PictureError
from msan_runtime.image import SUFFIXES, Picture, find_pictures, read_picture, write_picture

__all__ = ["Job", "Outcome", "deblur_files", "plan_jobs"]

UNSUPPORTED_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm"})
"""Names that mean a picture, not a folder, in a format that is not written."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture file to deblur, and where the result goes.

    Attributes:
        source, target: the file, and the result's.
        problem: why there is nothing to deblur at ``source`` (no such file, an empty folder).
    """

    source: Path
    target: Path
    problem: str | None = None

    @property
    def comparison(self) -> Path:
        """Where the before/after picture goes: beside the result, always PNG."""
        return self.target.with_name(f"{self.target.stem}.compare.png")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: done in ``seconds``, or not, with the reason in ``error``."""

    job: Job
    seconds: float
    error: str | None


def plan_jobs(inputs: Sequence[Path], output: Path, *, compare: bool = False) -> list[Job]:
    """Decide where each result goes.

    One input file and an ``output`` that ends like a picture: there. Otherwise ``output`` is a
    folder that keeps the names; folders are searched through and their inner paths kept. Where
    ``output`` lies inside such a folder, what is in it (earlier results) is not taken as input.

    Args:
        inputs: files and folders.
        output: a file or a folder; it need not exist.
        compare: whether before/after pictures will be written too, so that their names are checked.

    An input that does not exist, or a folder without pictures, becomes a job with a ``problem``.

    Raises:
        PictureError: if there is a problem with every input, two results would have one name, or a
            result would replace an input.
    """
    if output.suffix.lower() in UNSUPPORTED_SUFFIXES and not output.is_dir():
        raise PictureError(f"cannot write {output}: the name of a picture must end in {', '.join(sorted(SUFFIXES))}")
    if output.suffix.lower() in SUFFIXES and not output.is_dir() and not (len(inputs) == 1 and not inputs[0].is_dir()):
        raise PictureError(f"{output} is one picture, but the input is several. Give a folder as -o")
    if len(inputs) == 1 and inputs[0].is_file() and output.suffix.lower() in SUFFIXES and not output.is_dir():
        jobs = [Job(source=inputs[0], target=output)]
    else:
        jobs = [job for path in inputs for job in _jobs_of(path, output)]
    problems = [job.problem for job in jobs if job.problem is not None]
    if len(problems) == len(jobs):
        raise PictureError("; ".join(problems))
    _refuse_clashes([job for job in jobs if job.problem is None], compare=compare)
    return jobs


def deblur_files(deblurrer: Deblurrer, jobs: Sequence[Job], *, compare: bool = False) -> Iterator[Outcome]:
    """Deblur one file after the other; a bad one does not stop the rest.

    Args:
        deblurrer: what deblurs.
        jobs: from :func:`plan_jobs`.
        compare: also write a labelled before/after picture.

    Yields:
        An outcome for each job, in order.
    """
    for job in jobs:
        started = time.perf_counter()
        error = _run(deblurrer, job, compare=compare)
        yield Outcome(job=job, seconds=time.perf_counter() - started, error=error)


def _run(deblurrer: Deblurrer, job: Job, *, compare: bool) -> str | None:
    """Do one job; the reason if it failed."""
    if job.problem is not None:
        return job.problem
    try:
        picture = read_picture(job.source)
        sharp = deblurrer.deblur(picture.pixels)
        write_picture(job.target, dataclasses.replace(picture, pixels=sharp))
        if compare:
            sheet = side_by_side(picture.pixels, sharp)
            profile = None if picture.grey else picture.icc  # a grey profile does not fit a coloured sheet
            write_picture(job.comparison, Picture(pixels=sheet, alpha=None, grey=False, icc=profile, exif=None))
    except MsanError as error:
        return str(error)
    return None


def _jobs_of(path: Path, output: Path) -> list[Job]:
    """The jobs of one input; their results keep the names."""
    if path.is_file():
        return [Job(source=path, target=output / path.name)]
    if not path.is_dir():
        return [Job(source=path, target=output, problem=f"no file or folder {path}")]
    results = output.resolve()
    skipped = results if path.resolve() in results.parents else None
    files = [file for file in find_pictures(path) if not _is_in(file, skipped)]
    if not files:
        return [Job(source=path, target=output, problem=f"no JPEG, PNG, WebP or TIFF picture in {path}")]
    return [Job(source=file, target=output / file.relative_to(path)) for file in files]


def _is_in(file: Path, folder: Path | None) -> bool:
    return folder is not None and file.parent.resolve().is_relative_to(folder)


def _refuse_clashes(jobs: Sequence[Job], *, compare: bool) -> None:
    sources = {job.source.resolve() for job in jobs}
    written: dict[Path, Path] = {}
    for job in jobs:
        for result in (job.target, job.comparison) if compare else (job.target,):
            path = result.resolve()
            if path in sources:
                raise PictureError(f"the result of {job.source} would replace the input {result}. Choose another -o")
            if path in written:
                raise PictureError(f"{written[path]} and {job.source} would both be written to {result}. Rename one")
            written[path] = job.source
