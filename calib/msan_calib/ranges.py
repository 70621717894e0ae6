"""What every tensor of an FP32 graph reaches on the samples, and what of it FP16 cannot hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper

from msan_calib.casts import FLOAT16_MAX
from msan_calib.network import CalibrationError, PictureNetwork
from msan_calib.samples import Sample
from msan_calib.walk import Step, Walker

__all__ = ["FLOAT16_TINY", "PERCENTILES", "Ranges", "TensorRange", "WeightRange", "measure_ranges"]

FLOAT16_TINY = 2.0**-25
"""Half the smallest subnormal number of FP16: what is not larger becomes zero."""

PERCENTILES = (50.0, 99.0, 99.99)

BIN_SHIFT = 20
"""Bits dropped of an FP32 pattern without its sign: 8 of exponent and 3 of mantissa stay, bins of 1/8 octave."""
BINS = 1 << (31 - BIN_SHIFT)

OnSample = Callable[[int, int], None]
"""Called with the number of samples done, and of all."""


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """An activation over all samples.

    Attributes:
        tensor, node, op_type: its name, and what makes it.
        low, high: smallest and largest value.
        percentiles: of the magnitude, by per cent; to an eighth of an octave.
        overflow_share: of values beyond what FP16 holds.
        underflow_share: of values other than zero that become zero in FP16.
    """

    tensor: str
    node: str
    op_type: str
    low: float
    high: float
    percentiles: Mapping[float, float]
    overflow_share: float
    underflow_share: float

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True)
class WeightRange:
    """A weight, by output channel.

    Attributes:
        largest: magnitude of all.
        smallest_channel, median_channel: of the channels' largest magnitudes.
        dead_channels: whose values are all zero.
        underflow_share: of values other than zero that become zero in FP16.
    """

    tensor: str
    channels: int
    largest: float
    smallest_channel: float
    median_channel: float
    dead_channels: int
    underflow_share: float


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Every floating-point tensor of a graph, in the graph's order."""

    tensors: tuple[TensorRange, ...]
    weights: tuple[WeightRange, ...]

    def by_tensor(self) -> Mapping[str, TensorRange]:
        """Activations by name."""
        return {entry.tensor: entry for entry in self.tensors}


@dataclass
class _Magnitudes:
    """A streaming histogram of magnitudes in bins of an eighth of an octave: 16 KB, whatever passes."""

    node: str
    op_type: str
    low: float = math.inf
    high: float = -math.inf
    beyond: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: npt.NDArray[Any]) -> None:
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"the FP32 graph itself gives NaN or infinity at node {self.node} ({self.op_type}): repair the network"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if max(-low, high) > FLOAT16_MAX:
            self.beyond += int((np.abs(flat) > FLOAT16_MAX).sum())
        bits = (flat.view(np.uint32) & np.uint32(0x7FFFFFFF)) >> np.uint32(BIN_SHIFT)
        self.counts += np.bincount(bits, minlength=BINS)

    def finish(self, tensor: str) -> TensorRange:
        total = max(1, int(self.counts.sum()))
        tiny = int(self.counts[1 : _bin_of(FLOAT16_TINY)].sum())
        running = np.cumsum(self.counts)
        largest = max(abs(self.low), abs(self.high))
        return TensorRange(
            tensor=tensor,
            node=self.node,
            op_type=self.op_type,
            low=self.low,
            high=self.high,
            percentiles={p: min(largest, _upper_edge(running, p * total / 100)) for p in PERCENTILES},
            overflow_share=self.beyond / total,
            underflow_share=tiny / total,
        )


def measure_ranges(
    network: PictureNetwork,
    samples: Sequence[Sample],
    *,
    visit: Callable[[int, Step], None] | None = None,
    on_output: Callable[[int, npt.NDArray[Any]], None] | None = None,
    on_sample: OnSample | None = None,
) -> Ranges:
    """Run the FP32 graph over ``samples`` and record every floating-point tensor.

    Args:
        network: the graph.
        samples: pictures.
        visit: called with the sample's index after every node, for those who want to see the same run.
        on_output: called with the sample's index and the picture that came out.
        on_sample: told of progress.

    Raises:
        CalibrationError: if a node cannot be run, or gives NaN or infinity.
    """
    found: dict[str, _Magnitudes] = {}

    def record(step: Step) -> None:
        for name, values in step.float_outputs().items():
            found.setdefault(name, _Magnitudes(step.node.name, step.node.op_type)).add(values)

    walker = Walker(network.model)
    for index, sample in enumerate(samples):

        def both(step: Step, index: int = index) -> None:
            record(step)
            if visit is not None:
                visit(index, step)

        outputs = walker.run({network.input: network.feed(sample.blurred)}, both)
        if on_output is not None:
            on_output(index, outputs[network.output])
        if on_sample is not None:
            on_sample(index + 1, len(samples))
    tensors = tuple(entry.finish(name) for name, entry in found.items() if entry.counts.any())
    return Ranges(tensors=tensors, weights=tuple(_weight_ranges(network)))


def _weight_ranges(network: PictureNetwork) -> Iterable[WeightRange]:
    users = {name: node for node in network.model.graph.node for name in node.input}
    for tensor in network.model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or tensor.name not in users:
            continue
        values = np.abs(numpy_helper.to_array(tensor))
        axis = 1 if users[tensor.name].op_type == "ConvTranspose" else 0
        by_channel = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).max(axis=1, initial=0.0)
        yield WeightRange(
            tensor=tensor.name,
            channels=len(by_channel),
            largest=float(by_channel.max()),
            smallest_channel=float(by_channel.min()),
            median_channel=float(np.median(by_channel)),
            dead_channels=int((by_channel == 0).sum()),
            underflow_share=float(((values > 0) & (values <= FLOAT16_TINY)).mean()),
        )


def _bin_of(magnitude: float) -> int:
    return int(np.float32(magnitude).view(np.uint32)) >> BIN_SHIFT


def _upper_edge(running: npt.NDArray[np.int64], wanted: float) -> float:
    """The upper edge of the bin in which the cumulative count reaches ``wanted``."""
    index = int(np.searchsorted(running, wanted))
    return float(np.uint32((index + 1) << BIN_SHIFT).view(np.float32)) if index else 0.0
