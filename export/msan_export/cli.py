"""The commands of the export room: ``msan export``, ``build``, ``verify``, ``deploy``, ``inspect``, ``reproduce``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from msan_runtime.attention import DEFAULT_ATTENTION, Attention
from msan_runtime.errors import MsanError
from msan_runtime.targets import DEFAULT_GPUS, capabilities_named, describe_targets

if TYPE_CHECKING:
    from msan_export.engine import Engine, EngineSpec, Flavour, OnPhase
    from msan_export.inspection import Inspection
    from msan_export.parity import ParityReport

__all__ = ["register"]

screen = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

CheckpointArgument = Annotated[str, typer.Argument(help="Checkpoint file, or a shipped name (msan-s).", metavar="CKPT")]
GpuOption = Annotated[str, typer.Option("--gpu", help="GPUs, comma-separated (names: msan build --gpu list).")]
FlavourOption = Annotated[Literal["tensorrt-rtx", "tensorrt"], typer.Option(help="Which TensorRT builds the engine.")]
MinOption = Annotated[str | None, typer.Option("--min", help="Smallest tile, HEIGHTxWIDTH (default: 8x8).")]
OptOption = Annotated[
    str | None, typer.Option("--opt", help="Typical tile, HEIGHTxWIDTH (default: 720x1280, or --max if smaller).")
]
MaxOption = Annotated[str | None, typer.Option("--max", help="Largest tile, HEIGHTxWIDTH (default: 1920x1920).")]
AttentionOption = Annotated[
    str,
    typer.Option(
        help="window[:SIZE]: overlapping windows of SIZE×SIZE pixels, a multiple of 8 (384 if left out); "
        "or global: the whole picture.",
        metavar="global|window[:SIZE]",
    ),
]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures to compare on (default: shipped samples).")
]


def register(app: typer.Typer) -> None:
    """Add this room's commands to the root app."""
    app.command("export")(export)
    app.command("build")(build)
    app.command("verify")(verify)
    app.command("deploy")(deploy)
    app.command("inspect")(inspect)
    app.command("reproduce")(reproduce)


def export(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")],
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="Type of weights and arithmetic.")] = "fp16",
    io: Annotated[
        Literal["uint8", "float32"], typer.Option(help="Pictures, NHWC: uint8, or float32 in [0, 1].")
    ] = "uint8",
    attention: AttentionOption = str(DEFAULT_ATTENTION),
) -> None:
    """Export a checkpoint to ONNX (opset 23; any batch, any height and width that are multiples of 8)."""
    from msan.checkpoint import find_checkpoint, load_checkpoint
    from msan_export.onnx import export_onnx

    source = find_checkpoint(checkpoint)
    if output.resolve() == source.resolve():
        raise MsanError(f"{output} is the checkpoint itself and would be overwritten. Choose another -o")
    loaded = load_checkpoint(source)
    chosen = Attention.parse(attention)
    with _writing(output), errors.status("exporting"):
        artifact = export_onnx(loaded, output, precision=precision, io=io, attention=chosen)
    form = f"{precision}, {io} pictures, {chosen} attention, opset {artifact.opset}"
    _say(f"{output}: {loaded.spec.name}, {form}, {output.stat().st_size / 1e6:.1f} MB")


def build(
    model: Annotated[Path | None, typer.Argument(help="ONNX file from msan export.", metavar="MODEL.onnx")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the engine.")] = Path(),
    gpu: Annotated[str, typer.Option("--gpu", help="GPUs, comma-separated; 'list' prints the names.")] = DEFAULT_GPUS,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "fp8"] | None,
        typer.Option(help="Type to prove (default: as exported). fp32 needs a network without attention."),
    ] = None,
    flavour: FlavourOption = "tensorrt-rtx",
    smallest: MinOption = None,
    typical: OptOption = None,
    largest: MaxOption = None,
) -> None:
    """Build an engine from an ONNX file and prove its types. TensorRT-RTX needs no GPU for it."""
    if gpu == "list":
        _print_targets()
        return
    from msan_export.artifact import read_exported
    from msan_export.engine import build_engine, save_engine

    if model is None:
        raise MsanError("no ONNX file given: msan build MODEL.onnx -o DIR. Make one with: msan export")
    spec = _engine_spec(gpu, flavour, smallest, typical, largest)
    graph, metadata = read_exported(model)
    with _phases() as on_phase:
        engine = build_engine(graph, spec, precision or metadata.precision, on_phase=on_phase)
    with _writing(output):
        path = save_engine(engine, output, model)
    _print_engine(engine, path)


def verify(
    checkpoint: CheckpointArgument,
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")],
    pictures: PicturesOption = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures (default: BUNDLE.parity.json beside it).")
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option(help="TOML file of other bounds than the shipped ones (docs/acceptance.md).")
    ] = None,
) -> None:
    """Compare a bundle with its checkpoint in PyTorch. Exit code 1 if anything is out of bounds."""
    from msan.checkpoint import find_checkpoint, load_checkpoint
    from msan_export.parity import sample_cases, verify_bundle
    from msan_export.report import parity_json
    from msan_export.thresholds import read_thresholds
    from msan_runtime.atomic import write_text
    from msan_runtime.bundle import find_bundle

    bounds = read_thresholds(thresholds)
    loaded, folder, cases = load_checkpoint(find_checkpoint(checkpoint)), find_bundle(bundle), sample_cases(pictures)
    with errors.status("comparing"):
        report = verify_bundle(loaded, folder, cases, bounds)
    _print_verdict(report)
    # A shipped bundle lies among the installed packages: its figures go to the working folder.
    beside = folder.resolve().parent if Path(bundle).is_dir() else Path.cwd()
    target = json or beside / f"{folder.resolve().name}.parity.json"
    with _writing(target):
        write_text(target, parity_json(report))
    _say(f"{'PASS' if report.passed else 'FAIL'}: {folder} (figures in {target})")
    if not report.passed:
        raise typer.Exit(1)


def deploy(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder.")],
    gpu: GpuOption = DEFAULT_GPUS,
    flavour: FlavourOption = "tensorrt-rtx",
    smallest: MinOption = None,
    typical: OptOption = None,
    largest: MaxOption = None,
    pictures: PicturesOption = None,
    attention: AttentionOption = str(DEFAULT_ATTENTION),
    precision: Annotated[
        Literal["fp16", "int8", "fp8"], typer.Option(help="Of the engine; int8 and fp8 where the budget allows.")
    ] = "fp16",
    budget: Annotated[str, typer.Option(help="PSNR that INT8 or FP8 may lose.")] = "0.10dB",
    samples: Annotated[
        Path | None, typer.Option(help="Folder of pictures to decide types on (default: shipped pairs).")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who makes it, for the manifest.")] = None,
    sign: Annotated[
        Path | None, typer.Option(help="Sign it with this Ed25519 private key (PEM).", metavar="KEY.pem")
    ] = None,
) -> None:
    """Export, decide types, build and verify in one go; write a bundle if it passes."""
    from msan.checkpoint import find_checkpoint, load_checkpoint
    from msan_calib.calibrate import CalibrationOptions
    from msan_calib.cli import decibels
    from msan_calib.samples import choose_samples
    from msan_export import bundle
    from msan_export.engine import refuse_cards
    from msan_export.parity import sample_cases
    from msan_runtime.signature import check_private_key

    spec = _engine_spec(gpu, flavour, smallest, typical, largest)
    refuse_cards(spec, precision)
    if sign is not None:
        check_private_key(sign)
    options = CalibrationOptions(precision=precision, budget_db=decibels(budget))
    loaded, cases = load_checkpoint(find_checkpoint(checkpoint)), sample_cases(pictures)
    calibration = bundle.Calibration(samples=choose_samples(samples), options=options)
    chosen = Attention.parse(attention)
    with _phases() as on_phase:
        done = bundle.deploy(
            loaded,
            output,
            spec,
            cases,
            attention=chosen,
            calibration=calibration,
            provenance={} if by is None else {"by": by},
            signing_key=sign,
            on_step=errors.print,
            on_phase=on_phase,
        )
    _print_verdict(done.report)
    _say(f"\n{output}: {loaded.spec.name}, {chosen} attention, checkpoint {loaded.sha256[:12]}")
    for file in done.manifest.files:
        _say(f"  {file.path:24} {file.size_bytes / 1e6:6.1f} MB")
    _say(f"Use it: msan deblur PICTURE -o OUT --bundle {output}")


def inspect(
    path: Annotated[Path, typer.Argument(help="ONNX file, engine, or bundle's folder.", metavar="PATH")],
    layers: Annotated[bool, typer.Option("--layers", help="Every layer with its type.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what is found here.")] = None,
) -> None:
    """Show what a graph, an engine or a bundle is: types as built, FLOPs by type, contract, whether it runs here."""
    import dataclasses

    from msan_export import inspection
    from msan_runtime.atomic import write_text
    from msan_runtime.bundle import shipped_bundles
    from msan_runtime.strictjson import strict_json

    found = inspection.inspect(path if path.exists() else shipped_bundles().get(str(path), path))
    for part in (found, *found.parts):
        _print_inspection(part, layers=layers)
    if json is not None:
        with _writing(json):
            write_text(json, strict_json({"schema_version": 1, **dataclasses.asdict(found)}))


def reproduce(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint (default: shipped, or of that name here or beside the bundle).")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Folder that its types were decided on (default: shipped pairs).")
    ] = None,
) -> None:
    """Make a bundle again as its manifest says, and compare: graphs, types, pictures. Exit code 1 if they differ."""
    from msan_export import reproduction
    from msan_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    found = reproduction.reproduce(opened, checkpoint, samples, on_step=errors.print)
    for one in found.comparisons:
        _say(f"{'same ' if one.same else 'OTHER'}  {one.subject}{': ' if one.detail else ''}{one.detail}")
    for tool, versions in found.other_versions.items():
        _say(f"note: another {tool} than then: {versions}")
    verdict = "PASS: made again" if found.passed else "FAIL: something else came out than"
    _say(f"{verdict} {opened.folder}")
    if not found.passed:
        raise typer.Exit(1)


def _print_inspection(found: Inspection, *, layers: bool) -> None:
    _say(f"{found.path} ({found.kind})")
    for name, value in found.facts.items():
        _say(f"  {name}: {value}")
    for kind, count in found.layer_counts.items():
        _say(f"  {count:4} × {kind}")
    if found.gflop:
        total = sum(found.gflop.values())
        shares = ", ".join(f"{dtype} {flops:.2f} ({flops / total:.0%})" for dtype, flops in sorted(found.gflop.items()))
        _say(f"  convolutions, GFLOP at 256×256: {shares}")
    for layer in found.layers if layers else ():
        _say(f"    {layer.name}: {layer.kind} {layer.dtype}")
    for why in dict.fromkeys(found.islands.values()):
        nodes = [node for node, reason in found.islands.items() if reason == why]
        _say(f"  in FP32, {why}: {', '.join(nodes)}")


def _engine_spec(
    gpu: str, flavour: Flavour, smallest: str | None, typical: str | None, largest: str | None
) -> EngineSpec:
    from msan_export.engine import DEFAULT_PROFILE, EngineSpec
    from msan_runtime.manifest import Profile

    most = _shape(largest) if largest else DEFAULT_PROFILE.max
    _, height, width = DEFAULT_PROFILE.opt
    profile = Profile(
        min=_shape(smallest) if smallest else DEFAULT_PROFILE.min,
        opt=_shape(typical) if typical else (1, min(height, most[1]), min(width, most[2])),
        max=most,
    )
    return EngineSpec(flavour=flavour, profile=profile, capabilities=capabilities_named(gpu))


def _shape(text: str) -> tuple[int, int, int]:
    """(1, height, width) from ``HEIGHTxWIDTH``."""
    height, _, width = text.lower().replace("×", "x").partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise MsanError(f"a tile size is HEIGHTxWIDTH in pixels, for example 720x1280, not {text!r}")
    return 1, int(height), int(width)


def _print_targets() -> None:
    table = Table("name", "capability", "family", "cards")
    for row in describe_targets():
        table.add_row(*row)
    screen.print(table)
    _say("Also taken: sm_86, sm86 and 8.6 forms. Several: --gpu rtx30,rtx40,rtx50")


def _print_verdict(report: ParityReport) -> None:
    from msan_export.report import parity_notes, parity_table

    screen.print(parity_table(report))
    for note in parity_notes(report):
        _say(note)


def _say(line: str) -> None:
    """Print a line as it is, however wide the terminal."""
    screen.print(line, soft_wrap=True, markup=False)


def _print_engine(engine: Engine, path: Path) -> None:
    targets = ", ".join(capability.sm for capability in engine.spec.capabilities)
    _say(f"{path}: {engine.spec.flavour} {engine.version} for {targets}, {len(engine.data) / 1e6:.1f} MB")
    for kind, count in engine.layer_types.items():
        _say(f"  {count:4} × {kind}")


@contextmanager
def _phases() -> Generator[OnPhase]:
    """A progress line for the phases of an engine build."""
    with errors.status("working") as status:
        yield lambda phase, share: status.update(f"{phase} {share:.0%}")


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Turn a failure to write at ``path`` into a message."""
    try:
        yield
    except OSError as error:
        raise MsanError(f"cannot write to {path}: {error.strerror or error}. Choose another place") from error
