"""A run of ``msan deblur``, here or on a cluster, and what the screen shows of it."""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from msan_runtime.atomic import marked, remove_abandoned
from msan_runtime.batch import FileOptions, Outcome, deblur_files
from msan_runtime.cluster.addresses import PARTS, AddressLedger, StoreJournal, plan_addresses
from msan_runtime.cluster.ledger import Ledger, LocalLedger
from msan_runtime.cluster.options import RayOptions, WorkerOptions
from msan_runtime.cluster.run import RunStats, deblur_on_ray
from msan_runtime.cluster.stores import is_address
from msan_runtime.cluster.tasks import Ended
from msan_runtime.commands.screen import errors, printable
from msan_runtime.errors import PictureError
from msan_runtime.jobs import Job, Plan, plan_jobs
from msan_runtime.journal import JOURNAL_NAME, Journal, Run, recorded_results
from msan_runtime.loading import LoadOptions
from msan_runtime.naming import Naming
from msan_runtime.pipeline import StageTimes
from msan_runtime.video import VideoProgress

__all__ = ["Request", "deblur_here", "deblur_there"]

MOST_ERRORS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for.

    Attributes:
        inputs, output: paths, or addresses like ``s3://bucket/folder``.
        naming: of results.
        compare: whether before/after pictures are wanted.
        run: what the journal says of the run.
        restart: whether to do again what earlier runs did.
        files: how files are read and written.
        loading: of the deblurrer.
        threads: that read, and as many that write.
        stats: whether to say what took how long.
    """

    inputs: list[str]
    output: str
    naming: Naming
    compare: bool
    run: Run
    restart: bool
    files: FileOptions
    loading: LoadOptions
    threads: int | None
    stats: bool

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    def has_addresses(self) -> bool:
        return any(map(is_address, (*self.inputs, self.output)))

    def plan(self) -> Plan:
        """The jobs between local paths; their folders are there."""
        earlier = recorded_results(self.folder)
        paths = [Path(text) for text in self.inputs]
        plan = plan_jobs(paths, self.folder, naming=self.naming, compare=self.compare, earlier=earlier)
        _prepare_folders(plan, self.folder)
        return plan

    def journal(self, plan: Plan, stack: ExitStack) -> Journal | None:
        """The journal of a plan of several files, closed by ``stack``."""
        if not plan.many:
            return None
        return stack.enter_context(Journal.open(self.folder, self.run, restart=self.restart))


def deblur_here(request: Request) -> int:
    """Deblur in this process; gives the exit code."""
    if request.has_addresses:
        raise PictureError(
            f"{next(filter(is_address, (*request.inputs, request.output)))} needs --ray. Give --ray local"
        )
    plan = request.plan()
    times = StageTimes()
    with ExitStack() as stack:
        journal = request.journal(plan, stack)
        deblurrer = stack.enter_context(request.loading.load())
        screen = stack.enter_context(Screen(plan, request.output, deblurrer.backend.name))
        outcomes = deblur_files(
            deblurrer,
            plan,
            options=request.files,
            journal=journal,
            workers=request.threads,
            times=times,
            on_video=screen.show_video,
        )
        for outcome in stack.enter_context(closing(outcomes)):
            screen.show(outcome)
    if request.stats:
        typer.echo(_times_in_words(times))
    return screen.exit_code


def deblur_there(request: Request, ray_options: RayOptions) -> int:
    """Deblur on the workers of a cluster; gives the exit code."""
    stats = RunStats()
    with ExitStack() as stack:
        plan, ledger = (_between_addresses if request.has_addresses else _in_folders)(request, stack)
        screen = stack.enter_context(Screen(plan, request.output, f"Ray, {ray_options.address}"))
        worker_options = WorkerOptions(
            loading=_elsewhere(request.loading),
            model_sha256=request.run.model_sha256,
            files=replace(request.files, skip_existing=False),
            threads=request.threads,
            visible=_visible(request, plan, stack),
        )
        for ended in stack.enter_context(closing(deblur_on_ray(ledger, ray_options, worker_options, stats))):
            screen.show(ended)
    if request.stats:
        typer.echo(_stats_in_words(stats))
    return screen.exit_code


def _in_folders(request: Request, stack: ExitStack) -> tuple[Plan, Ledger]:
    plan = request.plan()
    stack.callback(_clear_after_deaths, plan)
    journal = request.journal(plan, stack)
    return plan, LocalLedger(plan, journal, skip_existing=request.files.skip_existing)


def _between_addresses(request: Request, stack: ExitStack) -> tuple[Plan, Ledger]:
    plan = plan_addresses(request.inputs, request.output, naming=request.naming, compare=request.compare)
    journal = StoreJournal(plan.target, plan.folder, request.run, restart=request.restart)
    stack.callback(journal.close)
    if plan.target.protocol == "file":
        _clear_after_deaths(plan.jobs)
        stack.callback(_clear_after_deaths, plan.jobs)
    return plan.jobs, AddressLedger(plan, journal, skip_existing=request.files.skip_existing)


def _elsewhere(loading: LoadOptions) -> LoadOptions:
    """``loading`` with paths that do not depend on the current folder, which workers do not share."""
    bundle = Path(loading.bundle)
    key = loading.public_key
    return replace(
        loading,
        bundle=str(bundle.absolute()) if bundle.is_dir() else loading.bundle,
        public_key=None if key is None else key.absolute(),
    )


def _visible(request: Request, plan: Plan, stack: ExitStack) -> tuple[str, ...]:
    """The local folders of the sources, and a file in that of the results: a folder may have a namesake elsewhere."""
    paths = [Path(text) for text in request.inputs if not is_address(text)]
    folders = {path if path.is_dir() else path.parent for path in paths if path.exists()}
    seen = sorted(str(path.absolute()) for path in folders)
    if not is_address(request.output):
        folder = request.folder if plan.folder is not None else request.folder.parent
        seen.append(str(stack.enter_context(marked(folder)).absolute()))
    return tuple(seen)


class Screen:
    """Progress on the error stream while the run goes on; then what failed, and one line of what was done."""

    def __init__(self, plan: Plan, output: str, backend: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=errors)
        self._task = self._progress.add_task(f"deblurring on {backend}", total=len(plan))
        self._video: TaskID | None = None
        self._total = len(plan)
        self._what = "files" if any(job.is_video for job in plan) else "pictures"
        self._output = output
        self._done = self._kept = self._failed = 0
        self._reasons: list[str] = []

    @property
    def exit_code(self) -> int:
        """0 if all files were done, 1 if some failed, 2 if all did."""
        return 0 if self._failed == 0 else 2 if self._failed == self._total else 1

    def show(self, outcome: Outcome | Ended) -> None:
        """Count what became of a file."""
        if outcome.error is not None:
            self._failed += 1
            if len(self._reasons) < MOST_ERRORS_SHOWN:
                self._reasons.append(outcome.error)
        else:
            self._done += 1
            self._kept += outcome.kept
        if self._video is not None:
            self._progress.remove_task(self._video)
            self._video = None
        self._progress.advance(self._task)

    def show_video(self, job: Job, progress: VideoProgress) -> None:
        """Show how far a video is."""
        if self._video is None:
            self._video = self._progress.add_task("", total=progress.frames_total)
        words = f"{printable(job.source.name)}, {progress.fps:.3g} frames/s"
        self._progress.update(self._video, description=words, completed=progress.frames_done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        for reason in self._reasons:
            errors.print(f"error: {printable(reason)}", style="red")
        if self._failed > len(self._reasons):
            more = self._failed - len(self._reasons)
            folder = self._output.rstrip("/")
            journal = f"{folder}/{PARTS}" if is_address(folder) else Path(folder) / JOURNAL_NAME
            errors.print(f"error: … and {more} more, with their reasons in {journal}", style="red")
        kept = f" ({self._kept} of them before)" if self._kept else ""
        typer.echo(f"{self._done} of {self._total} {self._what} deblurred to {self._output}{kept}")


def _prepare_folders(plan: Plan, output: Path) -> None:
    """Make the output folder now, so that a bad path fails before the work and not after; clear what kills left."""
    folder = output if plan.folder is not None else output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target_folder in plan.target_folders():
            remove_abandoned(target_folder)
    except OSError as error:
        raise PictureError(f"cannot write to {folder}: {error.strerror}. Choose another -o") from error


def _clear_after_deaths(plan: Plan) -> None:
    """Remove what workers that died were writing; what cannot be removed is the next run's to try."""
    for folder in plan.target_folders():
        with suppress(OSError):
            remove_abandoned(folder)


def _times_in_words(times: StageTimes) -> str:
    seconds = times.seconds
    return (
        f"deblurring took {times.busy_share:.1%} of {times.wall_seconds:.1f} s, waiting {times.waited_seconds:.1f} s; "
        f"meanwhile reading took {seconds['before']:.1f} s, writing {seconds['after']:.1f} s"
    )


def _stats_in_words(stats: RunStats) -> str:
    lines = [f"the first file was done after {stats.first_report_seconds:.1f} s"]
    lines += [
        f"{node}: {files} files on {backend or 'no backend'}" for (node, backend), files in sorted(stats.files.items())
    ]
    return "\n".join(lines)
