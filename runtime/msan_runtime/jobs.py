"""What goes where: the files to deblur, and the name of each result."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import overload

from msan_runtime.errors import PictureError
from msan_runtime.image import SUFFIXES
from msan_runtime.naming import Naming
from msan_runtime.video import VIDEO_SUFFIXES
from msan_runtime.walk import file_id, find_files

__all__ = ["MEDIA_SUFFIXES", "Job", "Plan", "plan_jobs", "refuse_twins"]

UNSUPPORTED_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm"})
"""Names that mean a picture, not a folder, in a format that is not written."""

MEDIA_SUFFIXES = SUFFIXES | VIDEO_SUFFIXES
COMPARISON_SUFFIX = ".compare.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One file to deblur, and where the result goes.

    Attributes:
        source, target: the file, and the result's.
        comparison: where the before/after picture goes, if one is wanted: beside the result, PNG.
        problem: why there is nothing to deblur at ``source`` (no such file, an empty folder).
    """

    source: Path
    target: Path
    comparison: Path | None = None
    problem: str | None = None

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in VIDEO_SUFFIXES

    @property
    def results(self) -> tuple[Path, ...]:
        """Every file that is written."""
        return (self.target,) if self.comparison is None else (self.target, self.comparison)


_Entry = tuple[Path, str] | Job
"""An input folder and a path in it, which is less than a job holds; or a job that has no such form."""


class Plan(Sequence[Job]):
    """The jobs of a run. Only names are held, so that a plan of many thousand files is small.

    Attributes:
        folder: where the results go; ``None`` if the one result's own name was given.
        many: whether it is the run of a folder or of several files.
    """

    def __init__(
        self, entries: Sequence[_Entry], folder: Path | None, naming: Naming, *, many: bool, compare: bool
    ) -> None:
        self.folder = folder
        self.many = many
        self._entries = entries
        self._naming = naming
        self._compare = compare
        self._crowded = self._crowded_comparisons() if compare else frozenset[Path]()

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self._job(entry) for entry in self._entries[index]]
        return self._job(self._entries[index])

    def __iter__(self) -> Iterator[Job]:
        return map(self._job, self._entries)

    def target_folders(self) -> set[Path]:
        """Every folder that results go to."""
        return {job.target.parent for job in self if job.problem is None}

    def _job(self, entry: _Entry) -> Job:
        if isinstance(entry, Job):
            source, target, problem = entry.source, entry.target, entry.problem
        else:
            source, target, problem = entry[0] / entry[1], self._target(entry[1]), None
        job = Job(source=source, target=target, problem=problem)
        if not self._compare or job.is_video or problem is not None:
            return job
        return Job(source=source, target=target, comparison=self._comparison(target))

    def _target(self, relative: str) -> Path:
        folder, name = os.path.split(relative)
        is_video = Path(name).suffix.lower() in VIDEO_SUFFIXES
        return (self.folder or Path()) / folder / self._naming.result_of(name, is_video=is_video)

    def _comparison(self, target: Path) -> Path:
        short = _short_comparison(target)
        return target.with_name(target.name + COMPARISON_SUFFIX) if short in self._crowded else short

    def _crowded_comparisons(self) -> frozenset[Path]:
        """Short names of comparisons that two results would share, or that a result has itself."""
        targets = [self._job_target(entry) for entry in self._entries]
        taken = Counter(targets) + Counter(map(_short_comparison, targets))
        return frozenset(path for path, count in taken.items() if count > 1)

    def _job_target(self, entry: _Entry) -> Path:
        return entry.target if isinstance(entry, Job) else self._target(entry[1])


def plan_jobs(
    inputs: Sequence[Path],
    output: Path,
    *,
    naming: Naming | None = None,
    compare: bool = False,
    earlier: Iterable[Path] = (),
) -> Plan:
    """Decide where each result goes.

    One input file and an ``output`` that ends like a picture or a video: there. Otherwise ``output``
    is a folder; input folders are searched through and their inner paths kept. Where ``output`` lies
    inside such a folder, what is in it (earlier results) is not taken as input.

    Args:
        inputs: files and folders.
        output: a file or a folder; it need not exist.
        naming: of results in a folder; the sources' names if left out.
        compare: whether before/after pictures will be written too.
        earlier: results of earlier runs, which are not taken as inputs where a folder is searched.

    An input that does not exist, or a folder without pictures, becomes a job with a ``problem``.

    Raises:
        PictureError: if there is a problem with every input, two results would have one name, or a
            result would replace an input.
    """
    if output.suffix.lower() in UNSUPPORTED_SUFFIXES and not output.is_dir():
        endings = ", ".join(sorted(SUFFIXES))
        raise PictureError(f"cannot write {output}: the name of a picture must end in {endings}")
    entries: Sequence[_Entry]
    if output.suffix.lower() in MEDIA_SUFFIXES and not output.is_dir():
        if naming not in (None, Naming()):
            raise PictureError(f"--name and --format are for results in a folder; {output} has its name already")
        entries, folder = [_single(inputs, output)], None
    else:
        entries, folder = list(dict.fromkeys(_entries(inputs, output, earlier))), output
    problems = [entry.problem for entry in entries if isinstance(entry, Job) and entry.problem is not None]
    if len(problems) == len(entries):
        raise PictureError("; ".join(problems))
    many = folder is not None and (len(inputs) > 1 or inputs[0].is_dir())
    plan = Plan(entries, folder, naming or Naming(), many=many, compare=compare)
    _refuse_clashes(plan, output)
    return plan


def _single(inputs: Sequence[Path], output: Path) -> Job:
    """The job whose result's own name was given."""
    if len(inputs) > 1 or inputs[0].is_dir():
        raise PictureError(f"{output} is one file, but the input is several. Give a folder as -o")
    source = inputs[0]
    if not source.is_file():
        return _nothing(source, output, f"no file or folder {source}")
    if (source.suffix.lower() in VIDEO_SUFFIXES) != (output.suffix.lower() in VIDEO_SUFFIXES):
        raise PictureError(f"{source} cannot become {output}: a video stays a video, and a picture a picture")
    return Job(source=source, target=output)


def _entries(inputs: Sequence[Path], output: Path, earlier: Iterable[Path]) -> Iterator[_Entry]:
    """What is to be done for each input, in order."""
    without = {identity for path in (output, *earlier) if (identity := file_id(path)) is not None}
    for path in inputs:
        if path.is_dir():
            found = find_files(path, MEDIA_SUFFIXES, without=without)
            yield from ((path, relative) for relative in found.files)
            yield from (_nothing(path, output, problem) for problem in found.problems)
            if not found.files and not found.problems:
                yield _nothing(path, output, f"no JPEG, PNG, WebP or TIFF picture in {path}, and no video")
        elif path.is_file():
            yield path.parent, path.name
        else:
            yield _nothing(path, output, f"no file or folder {path}")


def _nothing(path: Path, output: Path, problem: str) -> Job:
    return Job(source=path, target=output, problem=problem)


def _short_comparison(target: Path) -> Path:
    return target.with_name(target.stem + COMPARISON_SUFFIX)


def _refuse_clashes(plan: Plan, output: Path) -> None:
    """Refuse results that would replace an input or each other.

    Raises:
        PictureError: naming the files.
    """
    sources = {file_id(job.source) for job in plan if job.problem is None} - {None}
    for job in plan:
        for result in job.results if job.problem is None else ():
            if file_id(result) in sources:
                raise PictureError(f"the result of {job.source} would replace the input {result}. Choose another -o")
    key_of = _exact_key()
    names = refuse_twins(plan, key_of)
    if len({_folded(name) for name in names}) < len(names) and _ignores_case(output):
        refuse_twins(plan, lambda path: _folded(key_of(path)))


def refuse_twins(plan: Plan, key_of: Callable[[Path], str]) -> dict[str, int]:
    """Refuse two results of one key; gives the keys, each with the job's number.

    Raises:
        PictureError: naming the two sources.
    """
    taken: dict[str, int] = {}
    for number, job in enumerate(plan):
        for result in job.results if job.problem is None else ():
            first = taken.setdefault(key_of(result), number)
            if first != number:
                raise PictureError(
                    f"{plan[first].source} and {job.source} would both be written to {result}. Rename one"
                )
    return taken


def _exact_key() -> Callable[[Path], str]:
    """A function that tells a result's path with every link in its folder followed."""
    real_folder = cache(os.path.realpath)
    return lambda path: f"{real_folder(path.parent)}{os.sep}{path.name}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _ignores_case(folder: Path) -> bool:
    """Whether ``a`` and ``A`` are one file in ``folder``, or in the first folder above it that is there."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    try:
        with tempfile.NamedTemporaryFile(prefix=".msan-case-", dir=existing) as probe:
            path = Path(probe.name)
            return path.with_name(path.name.upper()).exists()
    except OSError:
        return False  # it cannot be written either: that error comes soon, and says more
