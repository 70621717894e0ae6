"""A report as one HTML file that needs no other: verdict, figures, plots, and the worst pictures to look at."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from msan_export.acceptance.verdict import (
    PAIR_METRICS,
    SECTIONS,
    Check,
    Exhibit,
    PairMetric,
    PairScores,
    ParityReport,
    Section,
)
from msan_export.report.plain import plain
from msan_export.report.plots import Plot, change_plots, difference_plot, psnr_plot
from msan_export.report.summary import (
    SECTION_TITLES,
    SECTION_WORDS,
    Row,
    change_words,
    difference_words,
    psnr_words,
    rows_of,
    sentence,
    short_rows,
    unit_words,
    unscored,
    verdict_word,
)
from msan_export.report.viewer import Size, Viewer, viewer_of_exhibit

__all__ = ["BUDGET_BYTES", "EXHIBITS", "EXHIBIT_SIDE_PX", "render", "report_html"]

EXHIBITS = 10
EXHIBIT_SIDE_PX = 480
BUDGET_BYTES = 1_500_000
"""What a page should take: its pictures are cut so that it does."""

TEMPLATES = Path(__file__).with_name("templates")

SENTENCES = 12
"""What failed is told in so many sentences at the top; the rest is told by its number."""

METRIC_NAMES: dict[PairMetric, str] = {
    "psnr_db": "PSNR, dB",
    "ssim_matlab3d": "SSIM (MATLAB, 3-D)",
    "ssim_skimage": "SSIM (scikit-image)",
}


def report_html(
    report: ParityReport,
    *,
    exhibits: int = EXHIBITS,
    exhibit_side_px: int = EXHIBIT_SIDE_PX,
    budget_bytes: int = BUDGET_BYTES,
) -> str:
    """The report as HTML: one file that asks no other file or host for anything.

    Args:
        report: what to show.
        exhibits: how many of the worst pictures.
        exhibit_side_px: longest side of a picture; larger ones are cut around the pixel that differs most.
        budget_bytes: what the page should take. Pictures are cut further until it does, but not below 64 px.
    """
    context = _context(report)
    shown = report.worst[: max(exhibits, 0)]
    left = budget_bytes - len(render("parity.html", {**context, "worst": ()}, ()).encode())
    size = Size(side_px=exhibit_side_px, viewer_bytes=max(left, 0) // max(len(shown), 1))
    worst = [_exhibit(exhibit, number, size) for number, exhibit in enumerate(shown, 1)]
    return render("parity.html", {**context, "worst": worst}, [one["viewer"] for one in worst])


def render(template: str, context: Mapping[str, Any], viewers: Sequence[Viewer]) -> str:
    """``template`` with what every page shares: style, script, and the policy that allows these two and no other."""
    style = "\n".join([(TEMPLATES / "style.css").read_text(encoding="utf-8"), *(viewer.rule for viewer in viewers)])
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    shared = {
        "style": Markup(style),
        "script": Markup(script),
        "policy": _policy(style, script),
    }
    return _environment().get_template(template).render(**shared, **context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_text,
    )
    environment.filters["verdict"] = verdict_word
    return environment


def _text(value: Any) -> Any:
    """Names may hold control characters and bytes that are no text: they are spelt out."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(style: str, script: str) -> str:
    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _context(report: ParityReport) -> dict[str, Any]:
    rows = rows_of(report.checks)
    return {
        "report": report,
        "headline": _headline(report),
        "failures": [sentence(row) for row in rows if row.passed is False],
        "missing": [sentence(row) for row in rows if row.passed is None],
        "most": SENTENCES,
        "facts": list(_facts(report)),
        "bounds": list(_bounds(report)),
        "sections": [section for name in SECTIONS for section in _section(name, report)],
    }


def _headline(report: ParityReport) -> str:
    run = [check for check in report.checks if check.passed is not None]
    failed, missing = sum(not check.passed for check in run), len(report.checks) - len(run)
    if failed:
        told = f"{failed} of {len(run)} checks failed."
    elif report.passed:
        told = f"All {len(run)} checks that were run are within their bounds."
    else:
        told = "No picture was compared, so nothing is shown to be right."
    return f"{told} {missing} {'was' if missing == 1 else 'were'} not run." if missing else told


def _facts(report: ParityReport) -> Iterator[tuple[str, str]]:
    """Who, what and when: names and values."""
    settings = report.settings
    yield "bundle", settings.bundle
    if settings.manifest_sha256 is not None:
        yield "manifest, SHA-256", settings.manifest_sha256
    yield "checkpoint", settings.checkpoint
    yield "checkpoint, SHA-256", settings.checkpoint_sha256
    yield "reference", settings.reference
    for name, value in settings.machine.items():
        yield {"date": "verified on", "system": "machine, system"}.get(name, name), _words(value)
    told = {"checkpoint": settings.checkpoint, "checkpoint_sha256": settings.checkpoint_sha256}
    for name, value in settings.provenance.items():
        if told.get(name) != value:
            yield f"bundle, {name.replace('_', ' ')}", value


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _bounds(report: ParityReport) -> Iterator[tuple[str, str]]:
    bounds = report.settings.thresholds
    pictures = (("FP32, before rounding", bounds.float_fp32), ("saved", bounds.uint8), ("INT8, FP8", bounds.quantized))
    for name, bound in pictures:
        yield f"pictures, {name}", f"≤ {bound.max_difference:g} {unit_words(bound)}, ≥ {bound.psnr_db:g} dB"
    yield "twice, and fixed size, levels of 255", f"≤ {bounds.steady_levels:g}"
    yield "black pixels where the reference has none", f"≤ {bounds.black_share:.2%} of a picture"
    yield "pairs, loss of mean PSNR", _by_precision(bounds.pairs_loss_db, " dB")
    yield "first node, RMS error over RMS", _by_precision(bounds.first_node, "")


def _by_precision(values: Mapping[str, float], unit: str) -> str:
    return ", ".join(f"{name.upper()} ≤ {value:g}{unit}" for name, value in values.items())


def _section(name: Section, report: ParityReport) -> Iterator[dict[str, Any]]:
    """A section for the template, if it has anything to tell."""
    checks = [check for check in report.checks if check.section == name]
    pairs = report.pairs if name == "pairs" else ()
    if not checks and not pairs:
        return
    verdicts = {check.passed for check in checks} | {scores.passed for scores in pairs}
    told = [check for check in unscored(report) if check.section == name]
    rows = short_rows(told)
    yield {
        "id": name,
        "title": SECTION_TITLES[name],
        "words": SECTION_WORDS[name],
        "passed": False if False in verdicts else True if True in verdicts else None,
        "rows": [_row(row) for row in rows],
        "measured": any(row.measured for row in rows),
        "plots": list(_plots(name, checks, pairs)),
        "pairs": [_pairs(scores) for scores in pairs],
        "checks": [_check(check) for check in told],
    }


def _plots(name: Section, checks: Sequence[Check], pairs: Sequence[PairScores]) -> Iterator[Plot]:
    made = []
    if name in ("pictures", "types", "tensors"):
        made.append(psnr_plot(checks, "PSNR of each picture"))
    if name in ("tensors", "pictures"):
        made.append(difference_plot(checks, "Largest difference of each picture"))
    yield from (plot for plot in made if plot is not None)
    yield from change_plots(pairs)


def _row(row: Row) -> dict[str, Any]:
    difference, psnr = row.largest_difference, row.lowest_psnr
    return {
        "subject": row.subject,
        "quantity": row.quantity,
        "count": row.pictures or "",
        "difference": "" if difference is None else _check(difference)["difference"],
        "psnr": "" if psnr is None else _check(psnr)["psnr"],
        "passed": row.passed,
        "detail": "; ".join(row.details[:2]) + (f"; and {len(row.details) - 2} more" if len(row.details) > 2 else ""),
    }


def _check(check: Check) -> dict[str, Any]:
    bound = check.threshold
    return {
        "subject": check.subject,
        "quantity": check.quantity,
        "case": check.case,
        "difference": _difference(check),
        "psnr": "" if bound is None or check.psnr_db is None else f"{psnr_words(check.psnr_db, bound)} dB",
        "passed": check.passed,
        "detail": check.detail,
    }


def _difference(check: Check | Exhibit) -> str:
    if check.threshold is None or check.max_difference is None:
        return ""
    return f"{difference_words(check.max_difference, check.threshold)} {unit_words(check.threshold)}"


def _exhibit(exhibit: Exhibit, number: int, size: Size) -> dict[str, Any]:
    return {
        "number": number,
        "subject": exhibit.subject,
        "case": exhibit.case,
        "passed": exhibit.passed,
        "difference": _difference(exhibit),
        "psnr": f"{psnr_words(exhibit.psnr_db, exhibit.threshold)} dB",
        "viewer": viewer_of_exhibit(exhibit, number, size),
    }


def _pairs(scores: PairScores) -> dict[str, Any]:
    metrics: list[PairMetric] = [metric for metric in PAIR_METRICS if metric in scores.change]
    return {
        "data_set": scores.data_set,
        "subject": scores.subject,
        "passed": scores.passed,
        "bound": f"loss ≤ {scores.loss_bound_db:g} dB",
        "count": len(scores.names),
        "metrics": [
            {
                "name": METRIC_NAMES[metric],
                "before": _mean(scores.before[metric]),
                "after": _mean(scores.after[metric]),
                "change": change_words(scores.change[metric], 4),
                "judged": metric == "psnr_db",
            }
            for metric in metrics
        ],
        "pictures": [
            (name, [(f"{before:.4f}", f"{after:.4f}") for before, after in figures])
            for name, *figures in zip(
                scores.names,
                *(zip(scores.before[metric], scores.after[metric], strict=True) for metric in metrics),
                strict=True,
            )
        ],
        "names": [METRIC_NAMES[metric] for metric in metrics],
    }


def _mean(figures: Sequence[float]) -> str:
    return f"{sum(figures) / len(figures):.4f}" if figures else ""
