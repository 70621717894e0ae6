"""``msan deploy``: from a checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from msan_export.commands.shared import (
    ArchOption,
    AttentionOption,
    CheckpointArgument,
    FlavourOption,
    GpuOption,
    LoaderOption,
    MaxOption,
    MinOption,
    OptOption,
    PicturesOption,
    engine_spec,
    errors,
    phases,
    print_verdict,
    say,
)
from msan_runtime.targets import DEFAULT_GPUS

__all__ = ["deploy"]


def deploy(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder.")],
    gpu: GpuOption = DEFAULT_GPUS,
    flavour: FlavourOption = "tensorrt-rtx",
    smallest: MinOption = None,
    typical: OptOption = None,
    largest: MaxOption = None,
    pictures: PicturesOption = None,
    attention: AttentionOption = None,
    arch: ArchOption = None,
    loader: LoaderOption = None,
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
    from msan_calib.calibrate import CalibrationOptions
    from msan_calib.cli import decibels
    from msan_calib.samples import choose_samples
    from msan_export import bundle
    from msan_export.acceptance.cases import sample_cases
    from msan_export.engine import refuse_cards
    from msan_export.source import attention_of, load_source
    from msan_runtime.signature import check_private_key

    spec = engine_spec(gpu, flavour, smallest, typical, largest)
    refuse_cards(spec, precision)
    if sign is not None:
        check_private_key(sign)
    options = CalibrationOptions(precision=precision, budget_db=decibels(budget))
    loaded, cases = load_source(checkpoint, arch=arch, loader=loader), sample_cases(pictures)
    calibration = bundle.Calibration(samples=choose_samples(samples), options=options)
    chosen = attention_of(loaded, attention)
    with phases() as on_phase:
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
    print_verdict(done.report)
    form = f"{chosen} attention" if arch is None and loader is None else f"by {arch or loader}"
    say(f"\n{output}: {loaded.spec.name}, {form}, checkpoint {loaded.sha256[:12]}")
    for file in done.manifest.files:
        say(f"  {file.path:24} {file.size_bytes / 1e6:6.1f} MB")
    say(f"Use it: msan deblur PICTURE -o OUT --bundle {output}")
