"""``msan deblur``: pictures, videos, and folders of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msan_runtime.commands.values import bytes_from_text, seconds_from_text, size_from_text

if TYPE_CHECKING:
    from msan_runtime.batch import FileOptions
    from msan_runtime.cluster.options import RayOptions
    from msan_runtime.naming import Naming
    from msan_runtime.video import VideoOptions

__all__ = ["deblur"]

MODEL, FOLDERS, PICTURES, VIDEOS, LIMITS = "Model", "Folders", "Pictures", "Videos", "Memory and speed"
CLUSTER = "Many machines (Ray)"

Inputs = Annotated[list[str], typer.Argument(help="Pictures (JPEG, PNG, WebP, TIFF), videos, or folders of them.")]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="PATH", help="Folder for the results, or a file for one input.")
]
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
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="local (this machine), auto (the cluster that it is in) or HOST:PORT. Paths may be like s3://bucket/folder.",
        rich_help_panel=CLUSTER,
    ),
]
RayWorkers = Annotated[
    str | None,
    typer.Option(metavar="MIN[:MAX]", help="How many. Default: 1 to what there is room for.", rich_help_panel=CLUSTER),
]
RayGpus = Annotated[
    float | None, typer.Option(min=0, help="Of each worker. Default: 1 where there are any.", rich_help_panel=CLUSTER)
]
RayCpus = Annotated[
    float | None,
    typer.Option(min=0.01, help="Of each worker. Default: 1 with a GPU, else a node's.", rich_help_panel=CLUSTER),
]


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
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    ray_gpus: RayGpus = None,
    ray_cpus: RayCpus = None,
) -> None:
    """Deblur pictures, videos, and folders of them. Bad files are reported and the others done.

    A run of several files keeps a journal in the output folder: given again after a stop, the command goes on.

    Exit code: 0 all done, 1 some files failed, 2 none could be done.
    """
    from msan_runtime.batch import FileOptions
    from msan_runtime.bundle import find_bundle
    from msan_runtime.commands.deblurring import Request, deblur_here, deblur_there
    from msan_runtime.image import EncodeOptions
    from msan_runtime.journal import Run, model_digest
    from msan_runtime.loading import LoadOptions
    from msan_runtime.manifest import load_manifest
    from msan_runtime.naming import Naming

    loading = LoadOptions(
        bundle=bundle,
        backend=backend,
        tile=None if tile is None else size_from_text(tile),
        overlap_px=overlap,
        memory_bytes=None if memory is None else bytes_from_text(memory),
        rebuild=not no_rebuild,
        public_key=require_signature,
    )
    encode = EncodeOptions(jpeg_quality=quality, webp_quality=quality)
    video = _video_options(crf, codec, start, end)
    max_pixels = round(max_megapixels * 1e6)
    files = FileOptions(encode=encode, video=video, max_pixels=max_pixels, skip_existing=skip_existing)
    manifest = load_manifest(find_bundle(bundle))
    naming = Naming(template=name, picture_format=picture_format, model=manifest.name)
    settings = _settings(naming, files) | {"--compare": compare, "--tile": tile, "--overlap": overlap}
    request = Request(
        inputs=inputs,
        output=output,
        naming=naming,
        compare=compare,
        run=Run(model=manifest.name, model_sha256=model_digest(manifest), settings=settings),
        restart=restart,
        files=files,
        loading=loading,
        threads=workers,
        stats=stats,
    )
    cluster = _cluster_options(ray, ray_workers, ray_gpus, ray_cpus)
    raise typer.Exit(deblur_here(request) if cluster is None else deblur_there(request, cluster))


def _cluster_options(
    address: str | None, workers: str | None, gpus: float | None, cpus: float | None
) -> RayOptions | None:
    from msan_runtime.cluster.options import ClusterError, RayOptions, worker_range_from_text

    if address is not None:
        pool = worker_range_from_text(workers) if workers else None
        return RayOptions(address=address, workers=pool, gpus=gpus, cpus=cpus)
    for name, value in (("--ray-workers", workers), ("--ray-gpus", gpus), ("--ray-cpus", cpus)):
        if value is not None:
            raise ClusterError(f"{name} needs --ray. Give --ray local for this machine")
    return None


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
