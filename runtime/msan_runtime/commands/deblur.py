"""``msan deblur``: pictures, videos, and folders of them."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from msan_runtime.commands.screen import errors, printable
from msan_runtime.commands.values import bytes_from_text, seconds_from_text, size_from_text
from msan_runtime.errors import PictureError

if TYPE_CHECKING:
    from msan_runtime.batch import FileOptions, Outcome
    from msan_runtime.jobs import Job, Plan
    from msan_runtime.naming import Naming
    from msan_runtime.pipeline import StageTimes
    from msan_runtime.video import VideoOptions, VideoProgress

__all__ = ["deblur"]

MOST_ERRORS_SHOWN = 20

MODEL, FOLDERS, PICTURES, VIDEOS, LIMITS = "Model", "Folders", "Pictures", "Videos", "Memory and speed"

Inputs = Annotated[list[Path], typer.Argument(help="Pictures (JPEG, PNG, WebP, TIFF), videos, or folders of them.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for the results, or a file for one input.")]
Bundle = Annotated[str, typer.Option(help="A bundle's folder, or the name of a shipped one.", rich_help_panel=MODEL)]
Backend = Annotated[
    str, typer.Option(help="auto, rtx, tensorrt, ort-cuda, openvino-bf16, openvino or ort-cpu.", rich_help_panel=MODEL)
]
Name = Annotated[str, typer.Option(help="Names of results, of {stem}, {suffix} and {model}.", rich_help_panel=FOLDERS)]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Keep every result that is there.", rich_help_panel=FOLDERS)
]
Restart = Annotated[bool, typer.Option("--restart", help="Do again what earlier runs did.", rich_help_panel=FOLDERS)]
Format = Annotated[
    str | None, typer.Option("--format", help="png, jpg, webp or tif. Default: the source's.", rich_help_panel=PICTURES)
]
Quality = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="Of JPEG and WebP. Default: the source's.", rich_help_panel=PICTURES),
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also write labelled before/after pictures.", rich_help_panel=PICTURES)
]
MaxMegapixels = Annotated[float, typer.Option(min=0.001, help="Refuse larger pictures.", rich_help_panel=PICTURES)]
Crf = Annotated[int | None, typer.Option(min=0, max=63, help="Quality; 0 is the best.", rich_help_panel=VIDEOS)]
Codec = Annotated[str | None, typer.Option(help="An encoder, like libx265.", rich_help_panel=VIDEOS)]
Start = Annotated[str | None, typer.Option(metavar="TIME", help="In seconds or HH:MM:SS.mmm.", rich_help_panel=VIDEOS)]
End = Annotated[str | None, typer.Option(metavar="TIME", help="In seconds or HH:MM:SS.mmm.", rich_help_panel=VIDEOS)]
Tile = Annotated[
    str | None, typer.Option(metavar="HxW", help="Largest tile, px, like 512x768.", rich_help_panel=LIMITS)
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Overlap of tiles, px.", rich_help_panel=LIMITS)]
Memory = Annotated[str | None, typer.Option(metavar="SIZE", help="For the network, like 2GiB.", rich_help_panel=LIMITS)]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Threads that read, and that write. Default: by cores.", rich_help_panel=LIMITS),
]
RequireSignature = Annotated[
    Path | None,
    typer.Option(metavar="KEY.pem", help="Refuse a bundle not signed with this public key.", rich_help_panel=LIMITS),
]
NoRebuild = Annotated[
    bool,
    typer.Option(
        "--no-rebuild", help="Never build an engine that fits this GPU: take the next backend.", rich_help_panel=LIMITS
    ),
]
Stats = Annotated[bool, typer.Option("--stats", help="Say how busy the network was.", rich_help_panel=LIMITS)]


def deblur(
    inputs: Inputs,
    output: Output,
    bundle: Bundle = "msan-s",
    backend: Backend = "auto",
    name: Name = "{stem}{suffix}",
    skip_existing: SkipExisting = False,
    restart: Restart = False,
    picture_format: Format = None,
    quality: Quality = None,
    compare: Compare = False,
    max_megapixels: MaxMegapixels = 200.0,
    crf: Crf = None,
    codec: Codec = None,
    start: Start = None,
    end: End = None,
    tile: Tile = None,
    overlap: Overlap = None,
    memory: Memory = None,
    workers: Workers = None,
    no_rebuild: NoRebuild = False,
    require_signature: RequireSignature = None,
    stats: Stats = False,
) -> None:
    """Deblur pictures, videos, and folders of them. Bad files are reported and the others done.

    A run of several files keeps a journal in the output folder: given again after a stop, the command goes on.

    Exit code: 0 all done, 1 some files failed, 2 none could be done.
    """
    from msan_runtime.batch import FileOptions, deblur_files
    from msan_runtime.bundle import find_bundle
    from msan_runtime.deblur import Deblurrer
    from msan_runtime.image import EncodeOptions
    from msan_runtime.jobs import plan_jobs
    from msan_runtime.journal import Journal, Run, model_digest, recorded_results
    from msan_runtime.manifest import load_manifest
    from msan_runtime.naming import Naming
    from msan_runtime.pipeline import StageTimes

    tile_px = None if tile is None else size_from_text(tile)
    memory_bytes = None if memory is None else bytes_from_text(memory)
    encode = EncodeOptions(jpeg_quality=quality, webp_quality=quality)
    video = _video_options(crf, codec, start, end)
    max_pixels = round(max_megapixels * 1e6)
    options = FileOptions(encode=encode, video=video, max_pixels=max_pixels, skip_existing=skip_existing)
    manifest = load_manifest(find_bundle(bundle))
    naming = Naming(template=name, picture_format=picture_format, model=manifest.name)
    plan = plan_jobs(inputs, output, naming=naming, compare=compare, earlier=recorded_results(output))
    settings = _settings(naming, options) | {"--compare": compare, "--tile": tile, "--overlap": overlap}
    run = Run(model=manifest.name, model_sha256=model_digest(manifest), settings=settings)
    _prepare_folders(plan, output)
    times = StageTimes()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal.open(output, run, restart=restart)) if plan.many else None
        loaded = Deblurrer.load(
            bundle,
            backend,
            tile=tile_px,
            overlap_px=overlap,
            memory_bytes=memory_bytes,
            rebuild=not no_rebuild,
            public_key=require_signature,
        )
        deblurrer = stack.enter_context(loaded)
        screen = stack.enter_context(_Screen(plan, output, deblurrer.backend.name))
        outcomes = deblur_files(
            deblurrer, plan, options=options, journal=journal, workers=workers, times=times, on_video=screen.show_video
        )
        for outcome in stack.enter_context(closing(outcomes)):
            screen.show(outcome)
    if stats:
        typer.echo(_times_in_words(times))
    raise typer.Exit(screen.exit_code)


class _Screen:
    """Progress on the error stream while the run goes on; then what failed, and one line of what was done."""

    def __init__(self, plan: Plan, output: Path, backend: str) -> None:
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

    def show(self, outcome: Outcome) -> None:
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
            errors.print(f"error: … and {more} more, with their reasons in {self._journal_path}", style="red")
        kept = f" ({self._kept} of them before)" if self._kept else ""
        typer.echo(f"{self._done} of {self._total} {self._what} deblurred to {self._output}{kept}")

    @property
    def _journal_path(self) -> Path:
        from msan_runtime.journal import JOURNAL_NAME

        return self._output / JOURNAL_NAME


def _video_options(crf: int | None, codec: str | None, start: str | None, end: str | None) -> VideoOptions:
    from msan_runtime.video import VideoOptions

    start_seconds, end_seconds = (None if text is None else seconds_from_text(text) for text in (start, end))
    return VideoOptions(crf=crf, codec=codec, start_seconds=start_seconds, end_seconds=end_seconds)


def _settings(naming: Naming, options: FileOptions) -> dict[str, str | float | None]:
    """What the results depend on, by the names of the options."""
    return {
        "--name": naming.template,
        "--format": naming.picture_format,
        "--quality": options.encode.jpeg_quality,
        "--crf": options.video.crf,
        "--codec": options.video.codec,
        "--start": options.video.start_seconds,
        "--end": options.video.end_seconds,
    }


def _prepare_folders(plan: Plan, output: Path) -> None:
    """Make the output folder now, so that a bad path fails before the work and not after; clear what kills left."""
    from msan_runtime.atomic import remove_abandoned

    folder = output if plan.folder is not None else output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target_folder in plan.target_folders():
            remove_abandoned(target_folder)
    except OSError as error:
        raise PictureError(f"cannot write to {folder}: {error.strerror}. Choose another -o") from error


def _times_in_words(times: StageTimes) -> str:
    seconds = times.seconds
    return (
        f"deblurring took {times.busy_share:.1%} of {times.wall_seconds:.1f} s, waiting {times.waited_seconds:.1f} s; "
        f"meanwhile reading took {seconds['before']:.1f} s, writing {seconds['after']:.1f} s"
    )
