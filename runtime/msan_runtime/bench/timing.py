"""Timing of several competitors in one run, in turns, so that their ratios hold on a noisy machine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["WARM_UP_ROUNDS", "Latency", "interleaved", "paired_ratio"]

WARM_UP_ROUNDS = 1

REST_SECONDS = 0.1
"""Before each call: threads of the library that ran before it still spin for some 50 ms, and would take its cores."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall times of one call, in milliseconds, one for each round."""

    times_ms: tuple[float, ...]

    def percentile_ms(self, percent: float) -> float:
        """The time that ``percent`` per cent of the rounds stay within, interpolated."""
        return float(np.percentile(self.times_ms, percent))

    def to_dict(self) -> dict[str, Any]:
        """Percentiles, rounds and pictures a second as plain JSON values."""
        median_ms = self.percentile_ms(50)
        return {
            **{f"p{percent}_ms": round(self.percentile_ms(percent), 2) for percent in (50, 90, 99)},
            "rounds": len(self.times_ms),
            "pictures_per_second": round(1000 / median_ms, 3),
        }


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    on_round: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], object] = time.sleep,
) -> dict[str, Latency]:
    """Time every call once a round, after one round that does not count.

    The order of each round is drawn anew, the same in every run, so that none always follows the same one.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds + WARM_UP_ROUNDS):
        for name in random.Random(index).sample(names, len(names)):
            rest(REST_SECONDS)
            started = clock()
            calls[name]()
            if index >= WARM_UP_ROUNDS:
                times_ms[name].append(1000 * (clock() - started))
        on_round()
    return {name: Latency(times_ms=tuple(times)) for name, times in times_ms.items()}


def paired_ratio(one: Latency, other: Latency) -> float:
    """Median over the rounds of ``one``'s time over ``other``'s."""
    pairs: Sequence[tuple[float, float]] = list(zip(one.times_ms, other.times_ms, strict=True))
    return statistics.median(mine / theirs for mine, theirs in pairs)
