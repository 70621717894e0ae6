"""A report in short: a row for each subject and quantity with its worst figures, and a sentence for each row."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from msan_export.acceptance.thresholds import Threshold
from msan_export.acceptance.verdict import SECTIONS, Check, Exhibit, Interval, ParityReport, Section

__all__ = [
    "SECTION_TITLES",
    "SECTION_WORDS",
    "Row",
    "change_words",
    "difference_words",
    "psnr_words",
    "rows_of",
    "sentence",
    "short_rows",
    "unit_words",
    "unscored",
    "verdict_word",
]

SECTION_TITLES: dict[Section, str] = {
    "files": "Files",
    "types": "Types",
    "tensors": "Inside the network",
    "pictures": "Pictures",
    "pairs": "Pairs",
    "steadiness": "Steadiness",
}

SECTION_WORDS: dict[Section, str] = {
    "files": "Whether every file is what the manifest says, and every weight what the checkpoint holds.",
    "types": "The types that the engine's layers were built with.",
    "tensors": "What comes out of each sub-network and each node, beside the reference.",
    "pictures": "What the bundle gives for each picture, beside what the reference gives.",
    "pairs": "Distance to sharp pictures, before and after conversion.",
    "steadiness": "The same picture twice, and the graph with its input fixed to one size.",
}

DETAILS_IN_A_SENTENCE = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """Checks of one quantity of one subject, all of one section; those that were not run have a row of their own."""

    section: Section
    subject: str
    quantity: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool | None:
        """``False`` if one failed, ``None`` if they were not run."""
        found = {check.passed for check in self.checks}
        return False if False in found else None if None in found else True

    @property
    def failed(self) -> tuple[Check, ...]:
        """Those that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def largest_difference(self) -> Check | None:
        """The check of the largest difference, measured by its bound; ``None`` where none was measured."""
        measured = [check for check in self.checks if check.max_difference is not None and check.threshold is not None]
        return max(measured, key=_excess, default=None)

    @property
    def lowest_psnr(self) -> Check | None:
        """The check of the lowest PSNR, measured by its bound; ``None`` where none was measured."""
        measured = [check for check in self.checks if check.psnr_db is not None and check.threshold is not None]
        return min(measured, key=_margin_db, default=None)

    @property
    def measured(self) -> bool:
        """Whether it has figures with bounds."""
        return self.lowest_psnr is not None or self.largest_difference is not None

    @property
    def worst(self) -> Check:
        """The check to be named first: one that failed, of the lowest PSNR if there is one."""
        among = Row(
            section=self.section, subject=self.subject, quantity=self.quantity, checks=self.failed or self.checks
        )
        return among.lowest_psnr or among.checks[0]

    @property
    def details(self) -> tuple[str, ...]:
        """What its checks say, each thing once; of those that failed, if some did."""
        return tuple(dict.fromkeys(check.detail for check in self.failed or self.checks if check.detail))

    @property
    def pictures(self) -> int:
        """How many pictures it was checked on."""
        return len({check.case for check in self.checks if check.case})


def unscored(report: ParityReport) -> list[Check]:
    """The checks of a report but for the verdicts on scores, which are told beside the scores themselves."""
    scored = {(scores.subject, scores.passed) for scores in report.pairs}
    return [
        check
        for check in report.checks
        if not (check.section == "pairs" and check.case and (check.subject, check.passed) in scored)
    ]


def rows_of(checks: Iterable[Check]) -> tuple[Row, ...]:
    """The rows of ``checks``, in their order."""
    groups: dict[tuple[Section, str, str, bool], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.section, check.subject, check.quantity, check.passed is None), []).append(check)
    return tuple(
        Row(section=section, subject=subject, quantity=quantity, checks=tuple(checks))
        for (section, subject, quantity, _), checks in groups.items()
    )


def short_rows(checks: Iterable[Check]) -> tuple[Row, ...]:
    """The rows of ``checks``, a subject's together; what has no figures is told in one row for each verdict."""
    rows = rows_of(checks)
    order = {subject: place for place, subject in enumerate(dict.fromkeys(row.subject for row in rows))}
    together = sorted(rows, key=lambda row: (SECTIONS.index(row.section), order[row.subject], row.measured))
    return tuple(row for _, alike in groupby(together, key=_alike) for row in _joined(list(alike)))


def _alike(row: Row) -> tuple[Section, str, bool | None, bool]:
    return row.section, row.subject, row.passed, row.measured


def _joined(rows: list[Row]) -> list[Row]:
    first = rows[0]
    if first.measured or len(rows) == 1:
        return rows
    checks = tuple(check for row in rows for check in row.checks)
    quantities = ", ".join(dict.fromkeys(row.quantity for row in rows))
    return [Row(section=first.section, subject=first.subject, quantity=quantities, checks=checks)]


def sentence(row: Row) -> str:
    """What a row says, in one sentence without its end: subject, quantity, how many failed, the worst, the detail."""
    figures = ", ".join(_figure_words(row.worst))
    more = len(row.details) - DETAILS_IN_A_SENTENCE
    told = [
        ": ".join(part for part in (_count_words(row), figures) if part),
        *(detail.removeprefix(f"{row.subject}: ") for detail in row.details[:DETAILS_IN_A_SENTENCE]),
        f"and {more} more" if more > 0 else "",
    ]
    words = "; ".join(part for part in told if part) or ("out of bounds" if row.passed is False else "no reason given")
    return f"{row.subject}, {row.quantity}: {words}"


def _count_words(row: Row) -> str:
    """Which pictures, and how many of how many."""
    if len(row.checks) == 1:
        return row.worst.case
    which = f", worst {row.worst.case}" if row.worst.case else ""
    many = (
        f"{len(row.failed)} of {len(row.checks)} out of bounds" if row.passed is False else f"{len(row.checks)} checks"
    )
    return f"{many}{which}"


def _figure_words(check: Check) -> list[str]:
    if check.threshold is None or check.passed is None:
        return []
    words: list[str] = []
    if check.max_difference is not None:
        words.append(f"{difference_words(check.max_difference, check.threshold)} {unit_words(check.threshold)}")
    if check.psnr_db is not None:
        words.append(f"{psnr_words(check.psnr_db, check.threshold)} dB")
    return words


def difference_words(value: float, bound: Threshold) -> str:
    """A difference beside its bound, ``0.28 ≤ 3`` or ``12 > 3``."""
    limit = _limit_words(bound.max_difference, value)
    if math.isnan(value):
        return f"NaN, not ≤ {limit}"
    digits = max(2, len(f"{value:.0f}")) if 1 <= value < 1e6 else 2  # 255, not 2.6e+02
    while value > bound.max_difference >= float(f"{value:.{digits}g}") and digits < 17:
        digits += 1
    return f"{value:.{digits}g} {'>' if value > bound.max_difference else '≤'} {limit}"


def psnr_words(value: float, bound: Threshold) -> str:
    """A PSNR beside its bound, ``73.1 ≥ 50`` or ``41.2 < 50``; ``∞`` where nothing differs."""
    if math.isnan(value):
        return f"NaN, not ≥ {bound.psnr_db:g}"
    if value == math.inf:
        return f"∞ ≥ {bound.psnr_db:g}"
    digits = 1
    while value < bound.psnr_db <= float(f"{value:.{digits}f}") and digits < 15:
        digits += 1
    return f"{value:.{digits}f} {'<' if value < bound.psnr_db else '≥'} {bound.psnr_db:g}"


def change_words(change: Interval, digits: int = 3) -> str:
    """A mean change and its 95 % interval, ``−0.003 (−0.005 to −0.001)``."""
    mean = _signed(change.mean, digits)
    return f"{mean} ({_signed(change.low, digits)} to {_signed(change.high, digits)})" if change.known else mean


def unit_words(bound: Threshold | Check | Exhibit) -> str:
    """The unit of a difference: levels of 255, or of 1 for pictures before rounding."""
    threshold = bound if isinstance(bound, Threshold) else bound.threshold
    return "" if threshold is None else "of 1" if threshold.peak == 1 else "levels"


def verdict_word(passed: bool | None) -> str:
    """``pass``, ``FAIL`` or ``not run``."""
    return "not run" if passed is None else "pass" if passed else "FAIL"


def _limit_words(bound: float, value: float) -> str:
    """A bound in three digits, or in all where these would put ``value`` on its other side."""
    words = f"{bound:.1e}".replace(".0e", "e") if 0 < bound < 1e-3 else f"{bound:.3g}"
    return words if (value > bound) == (value > float(words)) else repr(bound)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _excess(check: Check) -> float:
    """The difference over its bound; not-a-number is the most."""
    value, bound = check.max_difference, check.threshold
    if value is None or bound is None or math.isnan(value):
        return math.inf
    return value / bound.max_difference if bound.max_difference else math.inf if value else 0.0


def _margin_db(check: Check) -> float:
    """PSNR over its bound; not-a-number is the least."""
    value, bound = check.psnr_db, check.threshold
    return -math.inf if value is None or bound is None or math.isnan(value) else value - bound.psnr_db
