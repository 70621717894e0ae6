"""``msan reproduce``: a bundle made again, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msan_export.commands.shared import ArchOption, LoaderOption, errors, say

__all__ = ["reproduce"]


def reproduce(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint (default: shipped, or of that name here or beside the bundle).")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Folder that its types were decided on (default: shipped pairs).")
    ] = None,
    arch: ArchOption = None,
    loader: LoaderOption = None,
) -> None:
    """Make a bundle again as its manifest says, and compare: graphs, types, pictures. Exit code 1 if they differ."""
    from msan_export import reproduction
    from msan_runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    found = reproduction.reproduce(opened, checkpoint, samples, arch=arch, loader=loader, on_step=errors.print)
    for one in found.comparisons:
        say(f"{'same ' if one.same else 'OTHER'}  {one.subject}{': ' if one.detail else ''}{one.detail}")
    for tool, versions in found.other_versions.items():
        say(f"note: another {tool} than then: {versions}")
    verdict = "PASS: made again" if found.passed else "FAIL: something else came out than"
    say(f"{verdict} {opened.folder}")
    if not found.passed:
        raise typer.Exit(1)
