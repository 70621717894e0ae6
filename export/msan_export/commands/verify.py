"""``msan verify``: the acceptance test of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msan_export.commands.shared import (
    ArchOption,
    CheckpointArgument,
    LoaderOption,
    PicturesOption,
    errors,
    print_verdict,
    say,
    writing,
)

if TYPE_CHECKING:
    from msan.evaluation.sets import EvaluationSet

__all__ = ["verify"]


def verify(
    checkpoint: CheckpointArgument,
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")],
    pictures: PicturesOption = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Data set of blurred and sharp pictures: PSNR and SSIM before and after conversion. Repeatable."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pairs of each data set.")] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Only the bundle's files on the pictures: no largest size, no backends but for --pairs."
        ),
    ] = False,
    reference: Annotated[
        Literal["float32", "float64"], typer.Option(help="Type that PyTorch computes the reference in.")
    ] = "float32",
    json: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures (default: BUNDLE.parity.json beside it).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Where to write the page (default: BUNDLE.report.html beside it).")
    ] = None,
    arch: ArchOption = None,
    loader: LoaderOption = None,
    thresholds: Annotated[
        Path | None, typer.Option(help="TOML file of other bounds than the shipped ones (docs/acceptance.md).")
    ] = None,
) -> None:
    """Compare a bundle with its checkpoint in PyTorch. Exit code 1 if anything is out of bounds."""
    from msan_export.acceptance.cases import sample_cases
    from msan_export.acceptance.thresholds import read_thresholds
    from msan_export.acceptance.verify import Scope, verify_bundle
    from msan_export.report.document import parity_json
    from msan_export.report.page import report_html
    from msan_export.source import load_source
    from msan_runtime.atomic import write_text
    from msan_runtime.bundle import find_bundle

    scope = Scope(
        thresholds=read_thresholds(thresholds),
        reference=reference,
        shapes=not quick,
        backends=not quick,
        pairs=_sets(pairs or [], limit),
    )
    loaded, folder, cases = (
        load_source(checkpoint, arch=arch, loader=loader),
        find_bundle(bundle),
        sample_cases(pictures),
    )
    with errors.status("verifying") as status:
        report = verify_bundle(loaded, folder, cases, scope, on_step=status.update)
    print_verdict(report)
    say(f"{'PASS' if report.passed else 'FAIL'}: {folder}")
    # A shipped bundle lies among the installed packages: its figures go to the working folder.
    beside = folder.resolve().parent if Path(bundle).is_dir() else Path.cwd()
    figures = json or beside / f"{folder.resolve().name}.parity.json"
    page = html or beside / f"{folder.resolve().name}.report.html"
    for target, text in ((figures, parity_json(report)), (page, report_html(report))):
        with writing(target):
            write_text(target, text)
        say(f"wrote {target}")
    if not report.passed:
        raise typer.Exit(1)


def _sets(roots: list[Path], limit: int | None) -> tuple[EvaluationSet, ...]:
    from msan.evaluation.sets import find_evaluation_sets

    return find_evaluation_sets(roots, limit=limit) if roots else ()
