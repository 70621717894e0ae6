"""Scales of quantised tensors: from streaming histograms of magnitudes, symmetric, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from msan_calib.casts import FLOAT16_MAX
from msan_calib.walk import Step

__all__ = ["LEVELS", "METHODS", "Histograms", "QuantizedType", "RangeMethod", "activation_scale", "channel_scales"]

QuantizedType = Literal["int8", "fp8"]
RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[str, ...] = get_args(RangeMethod)

LEVELS: dict[QuantizedType, float] = {"int8": 127.0, "fp8": 448.0}
"""The largest magnitude of the type: of FP8 E4M3."""

BINS = 2048
PERCENTILE = 99.99
ENTROPY_LEVELS = 128
STEP = 16
"""Thresholds are tried at every so many bins."""

LEAST_SCALE = 2.0**-14
"""The smallest normal number of FP16, in which scales are stored."""


@dataclass(frozen=True, kw_only=True)
class _Histogram:
    limit: float
    counts: npt.NDArray[np.int64]


class Histograms:
    """Histograms of the magnitudes of some tensors, 2,048 equal bins from zero to the largest.

    Args:
        largest: largest magnitude of each tensor, as measured before.
    """

    def __init__(self, largest: Mapping[str, float]) -> None:
        self._histograms = {
            name: _Histogram(limit=limit, counts=np.zeros(BINS, np.int64)) for name, limit in largest.items()
        }

    def visit(self, step: Step) -> None:
        """Count the results of one node; for a walk over the samples."""
        for name in self._histograms.keys() & step.outputs.keys():
            self.add(name, step.outputs[name].numpy())

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Count values of the tensor called ``name``."""
        histogram = self._histograms[name]
        if histogram.limit > 0:
            bins = (np.abs(values.reshape(-1)) * np.float32(BINS / histogram.limit)).astype(np.int64)
            histogram.counts[:] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def threshold(self, name: str, method: RangeMethod, levels: float) -> float:
        """The magnitude at which values are clipped."""
        histogram = self._histograms[name]
        if histogram.limit == 0 or method == "minmax":
            return histogram.limit
        width = histogram.limit / BINS
        if method == "percentile":
            return width * _percentile_bin(histogram.counts)
        tried = range(ENTROPY_LEVELS, BINS + 1, STEP)
        if method == "entropy":
            return width * min(tried, key=lambda bins: _divergence(histogram.counts, bins))
        return width * min(tried, key=lambda bins: _squared_error(histogram.counts, bins, levels))


def activation_scale(threshold: float, kind: QuantizedType) -> np.float16:
    """The scale, in FP16, of an activation that is clipped at ``threshold``."""
    return _stored(np.array([threshold / LEVELS[kind]]))[0]


def channel_scales(weight: npt.NDArray[Any], kind: QuantizedType) -> npt.NDArray[np.float16]:
    """Scales, in FP16, of a convolution's weight by output channel (its first axis). No value is clipped.

    A channel of zeros has the least scale.
    """
    largest = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1, initial=0.0)
    return _stored(largest.astype(np.float64) / LEVELS[kind])


def _stored(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float16]:
    """As FP16, not smaller than asked, so that nothing more is clipped."""
    bounded = np.clip(scales, LEAST_SCALE, FLOAT16_MAX / 2)
    stored = bounded.astype(np.float16)
    return np.where(stored.astype(np.float64) < bounded, np.nextafter(stored, np.float16(np.inf)), stored)


def _percentile_bin(counts: npt.NDArray[np.int64]) -> int:
    running = np.cumsum(counts)
    return int(np.searchsorted(running, running[-1] * PERCENTILE / 100)) + 1


def _squared_error(counts: npt.NDArray[np.int64], bins: int, levels: float) -> float:
    """Expected squared error, in bins squared, if clipped after ``bins``: of rounding, and of clipping."""
    step = bins / levels
    beyond = np.arange(bins, BINS) + 0.5 - bins
    clipped = float((counts[bins:] * np.square(beyond)).sum())
    # Values of zero, most of what a ReLU gives, are exact.
    return float(counts[1:bins].sum()) * step**2 / 12 + clipped


def _divergence(counts: npt.NDArray[np.int64], bins: int) -> float:
    """Kullback-Leibler divergence of the distribution in 128 levels from that in ``bins``, the rest clipped."""
    reference = counts[:bins].astype(np.float64)
    sliced = reference.copy()
    reference[-1] += counts[bins:].sum()
    edges = np.linspace(0, bins, ENTROPY_LEVELS + 1).astype(np.int64)
    sums = np.add.reduceat(sliced, edges[:-1])
    filled = np.add.reduceat((reference > 0).astype(np.float64), edges[:-1])
    mean = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    candidate = np.repeat(mean, np.diff(edges)) * (reference > 0)
    if candidate.sum() == 0:
        return float("inf")
    p, q = reference / reference.sum(), candidate / candidate.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum())
