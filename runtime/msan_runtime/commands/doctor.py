"""``msan doctor``: what this machine has for msan, tried out, with advice."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from msan_runtime.commands.screen import errors, printable
from msan_runtime.doctor.examination import Examination, examine
from msan_runtime.strictjson import strict_json

__all__ = ["doctor"]

MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "bold red")}

screen = Console(highlight=False, soft_wrap=True, markup=False)


def doctor(
    bundle: Annotated[str, typer.Option(help="What to try the backends with: a folder, or a shipped name.")] = "msan-s",
    json: Annotated[
        Path | None, typer.Option("--json", help="Write everything here; - for the screen, and nothing else there.")
    ] = None,
) -> None:
    """Say what is here and what follows: GPU, driver, each backend tried on a picture, and the fastest.

    Exit code: 0 if pictures can be deblurred, 1 if not.
    """
    with errors.status("looking") as status:
        found = examine(bundle, say=lambda name: status.update(f"trying {name}"))
    if json is not None:
        _write(found, json)
    if str(json) != "-":
        _print(found)
    if not found.healthy:
        raise typer.Exit(1)


def _print(found: Examination) -> None:
    for finding in found.findings:
        mark, style = MARKS[finding.state]
        screen.print(mark, end=" ", style=style)
        screen.print(f"{finding.subject}: {printable(finding.words)}")
        if finding.advice:
            screen.print(f"       → {printable(finding.advice)}")
    if not found.trials:
        screen.print("\nNo backend was tried, since the bundle cannot be used.")
        return
    if found.fastest is None:
        missing = any(one.backend == "ort-cpu" and "not installed" in one.problem for one in found.trials)
        step = "On any machine: pip install 'msan[cpu]'" if missing else "What to do is said above"
        screen.print(f"\nNo backend works: pictures cannot be deblurred here. {step}")
        return
    screen.print(f"\nFastest here: {found.fastest.backend}. Choose by name with: msan deblur --backend NAME")


def _write(found: Examination, path: Path) -> None:
    from msan_runtime.atomic import write_text

    fastest = None if found.fastest is None else found.fastest.backend
    body = {"schema_version": 1, "healthy": found.healthy, "fastest": fastest, **dataclasses.asdict(found)}
    if str(path) == "-":
        sys.stdout.write(strict_json(body))
    else:
        write_text(path, strict_json(body))
