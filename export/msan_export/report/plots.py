"""Plots for a page: where each dot, bound and tick of a strip plot lies, in per cent of its width."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msan_export.acceptance.verdict import Check, PairScores
from msan_export.report.summary import (
    Row,
    change_words,
    difference_words,
    psnr_words,
    rows_of,
    unit_words,
)

__all__ = ["Axis", "Bar", "Dot", "Lane", "Plot", "Tick", "change_plots", "difference_plot", "psnr_plot"]

LOW_PERCENT = 12.0
HIGH_PERCENT = 88.0
BELOW_PERCENT = 3.0
"""Where what lies below every number is drawn: zero on a logarithmic axis, or not-a-number."""
ABOVE_PERCENT = 97.0
MOST_TICKS = 6
MOST_NAMED_DOTS = 400
"""A plot with more dots than that names none: their names would be most of the page."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A picture's figure."""

    at: float
    passed: bool
    title: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A mean and its interval."""

    at: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line of a plot: its name, its worst figure in words, its dots, and where its bound lies."""

    name: str
    told: str
    words: str
    passed: bool
    dots: tuple[Dot, ...]
    bound: float | None
    bar: Bar | None = None


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A number of the axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A strip plot: lanes above one axis. ``allowed`` is the side of the bound where figures are good."""

    title: str
    axis: str
    allowed: str
    ticks: tuple[Tick, ...]
    lanes: tuple[Lane, ...]
    zero: float | None = None


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From numbers to per cent of the width; infinity and not-a-number have places of their own at its ends.

    Attributes:
        low, high: numbers at the ends; of a logarithmic axis their logarithms to base 10.
        nan_at: the end where not-a-number is drawn: the bad one.
    """

    low: float
    high: float
    logarithmic: bool = False
    nan_at: float = BELOW_PERCENT

    def percent(self, value: float) -> float:
        """Where ``value`` is drawn."""
        if math.isnan(value):
            return self.nan_at
        if math.isinf(value) or (self.logarithmic and value <= 0):
            return ABOVE_PERCENT if value > 0 else BELOW_PERCENT
        place = math.log10(value) if self.logarithmic else value
        share = (place - self.low) / (self.high - self.low)
        return round(min(max(LOW_PERCENT + share * (HIGH_PERCENT - LOW_PERCENT), LOW_PERCENT), HIGH_PERCENT), 2)

    def ticks(self, values: Iterable[float]) -> tuple[Tick, ...]:
        """Round numbers of the axis, and the ends where ``values`` need them."""
        numbers = self._decades() if self.logarithmic else _round_numbers(self.low, self.high)
        inner = [Tick(at=self.percent(number), label=_tick_label(number)) for number in numbers]
        return (*inner, *self._outer(list(values)))

    def _decades(self) -> list[float]:
        first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
        step = max(1, math.ceil((last - first) / (MOST_TICKS - 1)))
        return [10.0**exponent for exponent in range(first, last + 1, step)]

    def _outer(self, values: Sequence[float]) -> list[Tick]:
        below = ["0"] if self.logarithmic and 0 in values else []
        above = ["∞"] if math.inf in values else []
        if any(math.isnan(value) for value in values):
            (below if self.nan_at == BELOW_PERCENT else above).append("NaN")
        ends = ((BELOW_PERCENT, below), (ABOVE_PERCENT, above))
        return [Tick(at=at, label=", ".join(labels)) for at, labels in ends if labels]


def psnr_plot(checks: Iterable[Check], title: str) -> Plot | None:
    """PSNR of each picture, a lane for each subject and quantity; ``None`` where none was measured."""
    rows = _measured(checks)
    numbers = [(check.psnr_db, check.threshold.psnr_db) for check in _flat(rows) if check.threshold]
    if not numbers:
        return None
    values = [value for value, _ in numbers if value is not None]
    axis = _linear_axis([*values, *(bound for _, bound in numbers)])
    lanes = tuple(_lane(row, row.lowest_psnr, axis, _psnr_of, _psnr_bound, _psnr_told) for row in rows)
    return Plot(title=title, axis="PSNR, dB", allowed="right", ticks=axis.ticks(values), lanes=lanes)


def difference_plot(checks: Iterable[Check], title: str) -> Plot | None:
    """Largest difference of each picture on a logarithmic axis, in shares of full scale."""
    rows = _measured(checks)
    values = [_share_of(check) for check in _flat(rows)]
    if not values:
        return None
    axis = _log_axis([*values, *(_share_bound(check) for check in _flat(rows))])
    lanes = tuple(_lane(row, row.largest_difference, axis, _share_of, _share_bound, _share_told) for row in rows)
    words = "largest difference, of full scale (one level: 0.0039)"
    return Plot(title=title, axis=words, allowed="left", ticks=axis.ticks(values), lanes=lanes)


def change_plots(pairs: Iterable[PairScores]) -> list[Plot]:
    """What conversion changed in each picture's PSNR, with mean and interval: a plot for each data set."""
    sets: dict[str, list[PairScores]] = {}
    for scores in pairs:
        sets.setdefault(scores.data_set, []).append(scores)
    return [_change_plot(data_set, listed) for data_set, listed in sets.items()]


def _measured(checks: Iterable[Check]) -> list[Row]:
    """Rows of those checks that have a figure and a bound on it."""
    figures = [check for check in checks if check.psnr_db is not None and check.max_difference is not None]
    return list(rows_of(check for check in figures if check.threshold is not None))


def _flat(rows: Iterable[Row]) -> list[Check]:
    return [check for row in rows for check in row.checks]


Figure = Callable[[Check], float]


def _lane(
    row: Row, worst: Check | None, axis: Axis, value: Figure, bound: Figure, told: Callable[[Check], str]
) -> Lane:
    named = len(row.checks) <= MOST_NAMED_DOTS
    dots = tuple(
        Dot(
            at=axis.percent(value(check)),
            passed=check.passed is not False,
            title=f"{check.case}: {told(check)}" if named else "",
        )
        for check in row.checks
    )
    limits = {axis.percent(bound(check)) for check in row.checks}
    words = "" if worst is None else told(worst)
    return Lane(
        name=f"{row.subject} · {row.quantity}",
        told=words,
        words=f"{row.subject}, {row.quantity}: {len(dots)} figures, worst {words}",
        passed=row.passed is not False,
        dots=dots,
        bound=min(limits) if len(limits) == 1 else None,
    )


def _psnr_of(check: Check) -> float:
    return math.nan if check.psnr_db is None else check.psnr_db


def _psnr_bound(check: Check) -> float:
    return math.nan if check.threshold is None else check.threshold.psnr_db


def _psnr_told(check: Check) -> str:
    return "" if check.threshold is None else f"{psnr_words(_psnr_of(check), check.threshold)} dB"


def _share_of(check: Check) -> float:
    if check.max_difference is None or check.threshold is None:
        return math.nan
    return check.max_difference / check.threshold.peak


def _share_bound(check: Check) -> float:
    return math.nan if check.threshold is None else check.threshold.max_difference / check.threshold.peak


def _share_told(check: Check) -> str:
    if check.threshold is None or check.max_difference is None:
        return ""
    return f"{difference_words(check.max_difference, check.threshold)} {unit_words(check.threshold)}"


def _change_plot(data_set: str, pairs: Sequence[PairScores]) -> Plot:
    changes = [_changes(scores) for scores in pairs]
    values = [value for listed in changes for value in listed]
    ends = [end for scores in pairs for end in (scores.change["psnr_db"].low, scores.change["psnr_db"].high)]
    axis = _linear_axis([*values, *ends, 0.0, *(-scores.loss_bound_db for scores in pairs)])
    lanes = tuple(_change_lane(scores, listed, axis) for scores, listed in zip(pairs, changes, strict=True))
    return Plot(
        title=f"{data_set}: change of each picture's PSNR",
        axis="change of PSNR against the sharp picture, dB",
        allowed="right",
        ticks=axis.ticks(values),
        lanes=lanes,
        zero=axis.percent(0.0),
    )


def _changes(scores: PairScores) -> list[float]:
    """After less before; two infinite figures are equal."""
    both = zip(scores.before["psnr_db"], scores.after["psnr_db"], strict=True)
    return [0.0 if before == after else after - before for before, after in both]


def _change_lane(scores: PairScores, changes: Sequence[float], axis: Axis) -> Lane:
    change = scores.change["psnr_db"]
    named = len(changes) <= MOST_NAMED_DOTS
    bound = -scores.loss_bound_db
    dots = tuple(
        Dot(at=axis.percent(value), passed=True, title=f"{name}: {value:+.4f} dB" if named else "")
        for name, value in zip(scores.names, changes, strict=True)
    )
    low, high = (change.low, change.high) if change.known else (change.mean, change.mean)
    told = f"{change_words(change)} dB"
    return Lane(
        name=scores.subject,
        told=told,
        words=f"{scores.subject}: {len(dots)} pictures, mean change {told}, bound {bound:g} dB",
        passed=scores.passed is not False,
        dots=dots,
        bound=axis.percent(bound),
        bar=Bar(at=axis.percent(change.mean), low=axis.percent(low), high=axis.percent(high)),
    )


def _linear_axis(values: Iterable[float]) -> Axis:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low=low - margin, high=high + margin)


def _log_axis(values: Iterable[float]) -> Axis:
    places = [math.log10(value) for value in values if math.isfinite(value) and value > 0] or [0.0]
    low, high = math.floor(min(places)), math.ceil(max(places))
    return Axis(low=low, high=max(high, low + 1), logarithmic=True, nan_at=ABOVE_PERCENT)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2 or 5 times a power of ten, at most ``MOST_TICKS`` of them."""
    rough = (high - low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _tick_label(number: float) -> str:
    if number and (abs(number) < 1e-3 or abs(number) >= 1e5):
        exponent = math.floor(math.log10(abs(number)) + 1e-9)
        factor = number / 10.0**exponent
        mantissa = "" if math.isclose(factor, 1) else f"{factor:.3g}·"
        return f"{mantissa}10{str(exponent).translate(SUPERSCRIPTS)}"
    return f"{number:.6g}".replace("-", "−")
