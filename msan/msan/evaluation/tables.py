"""Scores as tables in the form of the paper's Tables 1 to 3, published figures beside them where they may stand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from msan.evaluation.evaluate import Evaluation, Metric
from msan.evaluation.methods import Method
from msan.evaluation.published import CITATION, FULL_TEST_SETS, PUBLISHED, PublishedMethod

__all__ = ["score_notes", "score_tables"]

Column = tuple[Evaluation, Metric]

HEADS: Mapping[Metric, str] = {
    "psnr_db": "PSNR\ndB\n",
    "ssim_matlab3d": "SSIM\nmatlab\n3d",
    "ssim_skimage": "SSIM\nskimage\n",
    "aligned_psnr_db": "PSNR\ndB\naligned",
    "aligned_ssim": "SSIM\n\naligned",
}
"""Lines under the data set's name; narrow, so that two data sets fit into 80 columns."""

PUBLISHED_FIGURE: Mapping[Metric, int] = {"psnr_db": 0, "ssim_matlab3d": 1, "aligned_psnr_db": 0, "aligned_ssim": 1}
"""Which of a published (PSNR, SSIM) is this metric; the rest were never published."""

ABSENT = "–"


def score_tables(method: Method, evaluations: Sequence[Evaluation]) -> list[Table]:
    """A table for each folder of data: a row a method, columns of PSNR and SSIM a data set, size and time.

    The rows are the blurred input, the published methods where a set is the full test set, and ``method``.
    """
    by_root: dict[Path, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_root.setdefault(evaluation.measured_set.root, []).append(evaluation)
    return [_table(method, several) for several in by_root.values()]


def score_notes(method: Method, evaluations: Sequence[Evaluation]) -> list[str]:
    """What the tables do not say: gains, skipped pictures, how time was taken, why there are no published rows."""
    notes = [_gain_note(evaluation) for evaluation in evaluations]
    notes += [_not_full_note(evaluation) for evaluation in evaluations if evaluation.reason_not_full is not None]
    if any(evaluation.reason_not_full is None for evaluation in evaluations):
        notes.append(f"* published: {CITATION}; times of one 1280×720 picture on an RTX 2080 Ti")
    if any("aligned_psnr_db" in evaluation.metrics for evaluation in evaluations):
        notes.append("aligned: RealBlur's published procedure (intensity, ECC homography, mask)")
    if method.timed:
        notes.append(f"time: median of a picture without reading and scoring, after warming up; {method.device}")
    return notes


def _table(method: Method, evaluations: Sequence[Evaluation]) -> Table:
    columns: list[Column] = [(one, metric) for one in evaluations for metric in _quoted(one)]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\nmethod\n\n", overflow="fold")
    for one in evaluations:
        for index, metric in enumerate(_quoted(one)):
            table.add_column(f"{'' if index else one.measured_set.name}\n{HEADS[metric]}", justify="right")
    table.add_column("\nsize\nMB\n", justify="right")
    table.add_column("\ntime\nms\n", justify="right")
    table.add_row("blurred input", *(_figure(metric, one.blurred(metric)) for one, metric in columns), ABSENT, ABSENT)
    for published in PUBLISHED if any(one.reason_not_full is None for one in evaluations) else ():
        table.add_row(*_published_row(published, columns))
    table.add_row(
        method.label,
        *(_figure(metric, one.deblurred(metric)) for one, metric in columns),
        ABSENT if method.size_bytes is None else f"{method.size_bytes / 1e6:.1f}",
        _time(evaluations),
    )
    return table


def _quoted(evaluation: Evaluation) -> tuple[Metric, ...]:
    """The metrics that are quoted for the set: after alignment where that is measured, else all."""
    aligned: tuple[Metric, ...] = ("aligned_psnr_db", "aligned_ssim")
    return tuple(metric for metric in aligned if metric in evaluation.metrics) or evaluation.metrics


def _published_row(published: PublishedMethod, columns: Sequence[Column]) -> list[str]:
    figures = [_published_figure(published, one, metric) for one, metric in columns]
    return [f"{published.name}*", *figures, f"{published.size_mb:.1f}", f"{published.time_ms:.0f}*"]


def _published_figure(published: PublishedMethod, evaluation: Evaluation, metric: Metric) -> str:
    place = PUBLISHED_FIGURE.get(metric)
    if evaluation.reason_not_full is not None or place is None:
        return ABSENT
    return _figure(metric, published.scores[evaluation.measured_set.name][place])


def _figure(metric: Metric, value: float) -> str:
    return f"{value:.2f}" if metric.endswith("db") else f"{value:.3f}"


def _time(evaluations: Sequence[Evaluation]) -> str:
    times = [time_ms for one in evaluations for time_ms in one.times_ms]
    return f"{statistics.median(times):.0f}" if times else ABSENT


def _gain_note(evaluation: Evaluation) -> str:
    count = len(evaluation.scores)
    worse = sum(one.quoted_gain_db < 0 for one in evaluation.scores)
    note = f"{evaluation.measured_set.name}: {evaluation.quoted_gain_db:+.2f} dB over the blurred input, "
    note += f"{worse} of {count} pictures worse"
    return f"{note}; {len(evaluation.skipped)} skipped" if evaluation.skipped else note


def _not_full_note(evaluation: Evaluation) -> str:
    chosen = evaluation.measured_set
    known = chosen.name if chosen.name in FULL_TEST_SETS else f"{chosen.name} ({chosen.layout})"
    return f"peers are not printed for {known}: {evaluation.reason_not_full}"
