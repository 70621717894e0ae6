"""What a conversion changes in the score against sharp pictures, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from msan.evaluation.evaluate import score
from msan.evaluation.sets import EvaluationSet, MeasuredPair
from msan_export.acceptance.as_run import backends_here
from msan_export.acceptance.reference import Reference
from msan_export.acceptance.thresholds import Thresholds
from msan_export.acceptance.verdict import PAIR_METRICS, Case, Check, Interval, PairMetric, PairScores
from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle
from msan_runtime.errors import MsanError
from msan_runtime.memory import tile_limits_within
from msan_runtime.tiling import TiledRunner

__all__ = ["Measured", "check_of", "interval", "pair_scores", "scores_of"]

CONFIDENCE = 0.95

Figures = Mapping[PairMetric, float]


def pair_scores(
    bundle: Bundle, sets: Sequence[EvaluationSet], reference: Reference, bounds: Thresholds
) -> Iterator[PairScores | Check]:
    """Scores of each set on every backend here, and of the graphs that no backend here takes; or why there are none.

    The reference is cut into the same tiles, so that what differs is the conversion alone.

    Raises:
        MissingExtraError: if what computes SSIM is not installed.
        MsanError: for a pair that cannot be read.
    """
    scorer = _Scorer(reference, bounds)
    run: set[str] = set()
    for name, backend in backends_here(bundle):
        if isinstance(backend, Backend):
            run.add(backend.precision)
            for chosen in sets:
                yield from scorer.scores(f"backend {name}", _type_of(backend), backend, chosen)
    for entry in bundle.manifest.graphs:
        if entry.io == "uint8" and entry.precision not in run:
            limits = tile_limits_within(bundle.manifest)
            with ort.open_ort(bundle.read(entry.path), "ort-cpu", limits=limits) as backend:
                for chosen in sets:
                    yield from scorer.scores(entry.path, entry.precision, backend, chosen)


def check_of(scores: PairScores) -> Check:
    """The line of the verdict for ``scores``."""
    change = scores.change["psnr_db"]
    how = f", 95 % from {change.low:+.4f} to {change.high:+.4f}" if change.known else ""
    few = ": too few pairs to tell" if scores.passed is None else ""
    return Check(
        section="pairs",
        subject=scores.subject,
        quantity="pairs",
        case=f"{scores.data_set}, {len(scores.names)} pairs",
        passed=scores.passed,
        detail=f"PSNR changed by {change.mean:+.4f} dB{how} (loss ≤ {scores.loss_bound_db:g} dB){few}",
    )


def interval(values: Sequence[float]) -> Interval:
    """The mean of ``values`` and its 95 % confidence interval by Student's t, of independent normal values."""
    from scipy import stats

    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return Interval(mean=mean, low=mean - half, high=mean + half)


@dataclass(kw_only=True)
class Measured:
    """Figures of one set, picture by picture."""

    names: list[str] = field(default_factory=list[str])
    before: list[Figures] = field(default_factory=list[Figures])
    after: list[Figures] = field(default_factory=list[Figures])

    def changes(self, metric: PairMetric) -> list[float]:
        pairs = zip(self.before, self.after, strict=True)
        # Two infinite figures are equal: both pictures are the sharp one.
        return [0.0 if one[metric] == other[metric] else other[metric] - one[metric] for one, other in pairs]


class _Scorer:
    """Scores backends; the reference's own scores are computed once for each way of cutting."""

    def __init__(self, reference: Reference, bounds: Thresholds) -> None:
        self._reference = reference
        self._bounds = bounds
        self._known: dict[object, Figures] = {}

    def scores(self, subject: str, kind: str, backend: Backend, chosen: EvaluationSet) -> Iterator[PairScores | Check]:
        measured = Measured()
        runner = TiledRunner(backend)
        for pair in chosen.pairs():
            try:
                (given,) = runner.run((pair.blurred,))
            except MsanError as error:
                yield Check(section="pairs", subject=subject, quantity="pairs", passed=False, detail=str(error))
                return
            measured.names.append(pair.name)
            measured.after.append(_figures(given, pair))
            measured.before.append(self._before(chosen, pair, runner))
        yield scores_of(subject, chosen.name, measured, self._bounds.pairs_loss_db[kind])

    def _before(self, chosen: EvaluationSet, pair: MeasuredPair, runner: TiledRunner) -> Figures:
        key = (chosen.name, pair.name, runner.limits)
        if key not in self._known:
            case = Case(name=f"{chosen.name}/{pair.name}", picture=pair.blurred)
            self._known[key] = _figures(self._reference.tiled(case, runner.limits, keep=False), pair)
        return self._known[key]


def _figures(picture: np.ndarray, pair: MeasuredPair) -> Figures:
    found = score(picture, pair.sharp, PAIR_METRICS)
    return {metric: found[metric] for metric in PAIR_METRICS}


def scores_of(subject: str, data_set: str, measured: Measured, loss_bound_db: float) -> PairScores:
    """What the figures of a set come to."""
    change: dict[PairMetric, Interval] = {metric: interval(measured.changes(metric)) for metric in PAIR_METRICS}
    return PairScores(
        data_set=data_set,
        subject=subject,
        names=tuple(measured.names),
        before={metric: tuple(one[metric] for one in measured.before) for metric in PAIR_METRICS},
        after={metric: tuple(one[metric] for one in measured.after) for metric in PAIR_METRICS},
        change=change,
        loss_bound_db=loss_bound_db,
        passed=_judged(change["psnr_db"], loss_bound_db),
    )


def _judged(change: Interval, loss_bound_db: float) -> bool | None:
    """Whether no more than ``loss_bound_db`` is lost; ``None`` where the interval goes beyond it: nothing is shown."""
    if -change.mean > loss_bound_db:
        return False
    # One pair has no interval: it is judged by itself.
    return True if not change.known or -change.low <= loss_bound_db else None


def _type_of(backend: Backend) -> str:
    """What it computes in, as bounds name it."""
    return "bf16" if backend.name == "openvino-bf16" else backend.precision
