"""Two bundles side by side: a table for the screen, JSON for programs, and a page to look at."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from msan_export.comparison import BundleComparison, ComparedPicture, Fact
from msan_export.report.page import BUDGET_BYTES, EXHIBIT_SIDE_PX, EXHIBITS, render
from msan_export.report.plain import plain
from msan_export.report.viewer import Size, Version, viewer_of
from msan_runtime.strictjson import strict_json

__all__ = ["COMPARISON_SCHEMA_VERSION", "comparison_html", "comparison_json", "comparison_table"]

COMPARISON_SCHEMA_VERSION = 1

SHA256 = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")

# With a space after each but the last: 78.
FACT_WIDTHS = (28, 24, 24)
PICTURE_WIDTHS = (48, 14, 14)


def comparison_table(comparison: BundleComparison) -> Group:
    """What differs, what is the same, the pictures and the times. 78 columns wide."""
    return Group(*_parts(comparison))


def comparison_json(comparison: BundleComparison) -> str:
    """The comparison as JSON (``schema_version`` 1), without pictures; infinite PSNR is ``"inf"``."""
    body = {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "a": dataclasses.asdict(comparison.a),
        "b": dataclasses.asdict(comparison.b),
        "facts": [{**dataclasses.asdict(fact), "same": fact.same} for fact in comparison.facts],
        "backend": comparison.backend,
        "pictures": [_picture_body(picture) for picture in comparison.pictures],
        "timing": dataclasses.asdict(comparison.timing),
        "machine": comparison.machine,
    }
    return strict_json(body).encode("utf-8", "backslashreplace").decode()


def comparison_html(
    comparison: BundleComparison,
    *,
    exhibits: int = EXHIBITS,
    exhibit_side_px: int = EXHIBIT_SIDE_PX,
    budget_bytes: int = BUDGET_BYTES,
) -> str:
    """The comparison as HTML: one file that asks no other file or host for anything.

    Args:
        comparison: what to show.
        exhibits: how many of the pictures that differ most.
        exhibit_side_px: longest side of a picture; larger ones are cut around the pixel that differs most.
        budget_bytes: what the page should take. Pictures are cut further until it does, but not below 64 px.
    """
    context = _context(comparison)
    shown = comparison.pictures[: max(exhibits, 0)]
    left = budget_bytes - len(render("comparison.html", {**context, "shown": ()}, ()).encode())
    size = Size(side_px=exhibit_side_px, viewer_bytes=max(left, 0) // max(len(shown), 1))
    viewers = [_viewer(picture, number, size) for number, picture in enumerate(shown, 1)]
    told = [_picture(picture) | {"viewer": viewer} for picture, viewer in zip(shown, viewers, strict=True)]
    return render("comparison.html", {**context, "shown": told}, viewers)


def _parts(comparison: BundleComparison) -> Iterator[RenderableType]:
    yield Text(plain(f"A: {comparison.a.name}"), style="bold")
    yield Text(plain(f"B: {comparison.b.name}"), style="bold")
    if comparison.different:
        yield _facts_table(comparison.different)
    else:
        yield Text("Nothing that is told of them differs.")
    yield Text(plain(_same_words(comparison.facts)))
    yield _pictures_table(comparison)
    yield Text(plain(_run_words(comparison)))
    yield Text(plain(_timing_words(comparison)))


def _facts_table(facts: Iterable[Fact]) -> Table:
    table = _new_table(("different", "A", "B"), FACT_WIDTHS)
    for group, listed in _grouped(facts):
        table.add_row(Text(plain(group), style="italic"))
        for fact in listed:
            table.add_row(*(Text(plain(_short(cell))) for cell in (f"  {fact.name}", fact.a, fact.b)))
    return table


def _pictures_table(comparison: BundleComparison) -> Table:
    title = f"pictures of A and B on {comparison.backend}"
    table = _new_table((title, "difference", "PSNR dB"), PICTURE_WIDTHS)
    for picture in comparison.pictures:
        told = _picture(picture)
        table.add_row(*(Text(plain(told[name])) for name in ("case", "difference", "psnr")))
    return table


def _run_words(comparison: BundleComparison) -> str:
    """Which of a bundle's files made the pictures: of an INT8 bundle a processor runs the FP32 graph."""
    a, b = (side.precision.upper() for side in (comparison.a, comparison.b))
    return f"Run were A's {a} file and B's {b} file, no others of theirs."


def _new_table(headers: Iterable[str], widths: Iterable[int]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header, width in zip(headers, widths, strict=True):
        table.add_column(Text(plain(header)), width=width, overflow="fold")
    return table


def _short(value: str | None) -> str:
    """Hashes by their first twelve digits."""
    return "none" if value is None else SHA256.sub(r"\1…", value)


def _same_words(facts: Iterable[Fact]) -> str:
    """How much of each group is the same."""
    groups: dict[str, list[bool]] = {}
    for fact in facts:
        groups.setdefault(fact.group, []).append(fact.same)
    told = [
        group if all(same) else f"{sum(same)} of {len(same)} of {group}" for group, same in groups.items() if any(same)
    ]
    return f"The same: {', '.join(told) or 'nothing'}."


def _timing_words(comparison: BundleComparison) -> str:
    timing = comparison.timing
    return (
        f"Time for {timing.height}×{timing.width} px, median of {timing.rounds} by turns: "
        f"A {timing.a_ms:.1f} ms, B {timing.b_ms:.1f} ms; B takes {timing.ratio:.2f} times as long as A."
    )


def _picture(picture: ComparedPicture) -> dict[str, str]:
    equal = picture.psnr_db == math.inf
    return {
        "case": picture.case,
        "difference": "none" if equal else f"{picture.max_difference:g} of 255",
        "psnr": "∞" if equal else f"{picture.psnr_db:.2f}",
    }


def _picture_body(picture: ComparedPicture) -> dict[str, Any]:
    height, width = picture.blurred.shape[:2]
    return {
        "case": picture.case,
        "max_difference": picture.max_difference,
        "psnr_db": picture.psnr_db,
        "height_px": height,
        "width_px": width,
    }


def _context(comparison: BundleComparison) -> dict[str, Any]:
    different, same = (_things(len(facts)) for facts in (comparison.different, comparison.same))
    equal = sum(picture.psnr_db == math.inf for picture in comparison.pictures)
    return {
        "comparison": comparison,
        "headline": f"Different: {different}. The same: {same}.",
        "same_words": same,
        "pictures_words": f"{equal} of {len(comparison.pictures)} pictures are equal to the bit.",
        "run_words": _run_words(comparison),
        "timing_words": _timing_words(comparison),
        "different": list(_grouped(comparison.different)),
        "same": list(_grouped(comparison.same)),
        "pictures": [_picture(picture) for picture in comparison.pictures],
        "facts": list(_origin(comparison)),
    }


def _things(count: int) -> str:
    return "1 thing" if count == 1 else f"{count} things"


def _grouped(facts: Iterable[Fact]) -> Iterator[tuple[str, list[Fact]]]:
    """Facts by their groups, which stand together already."""
    for group, listed in groupby(facts, key=lambda fact: fact.group):
        yield group, list(listed)


def _origin(comparison: BundleComparison) -> Iterator[tuple[str, str]]:
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        yield f"{letter}, manifest, SHA-256", side.manifest_sha256
        yield f"{letter}, ran in", side.precision
    for name, value in comparison.machine.items():
        words = value if not isinstance(value, Mapping) else ", ".join(f"{key} {one}" for key, one in value.items())
        yield {"date": "compared on", "system": "machine, system"}.get(name, name), str(words)


def _viewer(picture: ComparedPicture, number: int, size: Size) -> Any:
    versions = (
        Version(key="input", name="input", pixels=picture.blurred),
        Version(key="a", name="A", pixels=picture.a),
        Version(key="b", name="B", pixels=picture.b),
    )
    return viewer_of(versions, ("a", "b"), key=f"picture-{number}", name=picture.case, bound=None, size=size)
