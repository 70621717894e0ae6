"""``msan report``: two bundles side by side, on the screen, as a page and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msan_export.commands.shared import PicturesOption, errors, say, screen, writing

__all__ = ["report"]


def report(
    a: Annotated[str, typer.Argument(help="A bundle's folder, or a shipped name (msan-s).", metavar="A")],
    b: Annotated[str, typer.Argument(help="The bundle to compare it with.", metavar="B")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a page to look at here.", metavar="FILE.html")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here.", metavar="FILE")] = None,
    pictures: PicturesOption = None,
    backend: Annotated[
        str, typer.Option(help="That runs both (default: the fastest for A; names: msan doctor).", metavar="NAME")
    ] = "auto",
) -> None:
    """Compare two bundles: what they are, what they give for the same pictures, and how fast. Judges nothing."""
    from msan_export.acceptance.cases import sample_cases
    from msan_export.comparison import compare_bundles
    from msan_export.report.comparison import comparison_html, comparison_json, comparison_table
    from msan_runtime.bundle import open_bundle

    first, second, cases = open_bundle(a), open_bundle(b), sample_cases(pictures)
    with errors.status("comparing"):
        found = compare_bundles(first, second, cases, backend=backend)
    screen.print(comparison_table(found))
    if output is not None:
        _write(output, comparison_html(found))
    if json is not None:
        _write(json, comparison_json(found))


def _write(path: Path, text: str) -> None:
    from msan_runtime.atomic import write_text

    with writing(path):
        write_text(path, text)
    say(f"wrote {path}")
