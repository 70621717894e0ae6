"""How every convolution that may be quantised would be: scales from histograms, and biases put right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from msan_calib.network import PictureNetwork
from msan_calib.policy import Convolution
from msan_calib.qdq import QuantizedConvolution, dequantized
from msan_calib.ranges import OnSample, Ranges
from msan_calib.samples import Sample
from msan_calib.scales import LEVELS, Histograms, QuantizedType, RangeMethod, activation_scale, channel_scales
from msan_calib.walk import NodeRunner, Step, Walker

__all__ = ["quantize_convolutions"]


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A quantised convolution before its bias is put right."""

    node: onnx.NodeProto
    input_scale: np.float16
    weight: npt.NDArray[np.float32]
    weight_scales: npt.NDArray[np.float16]


def quantize_convolutions(
    network: PictureNetwork,
    samples: Sequence[Sample],
    convolutions: Sequence[Convolution],
    ranges: Ranges,
    *,
    kind: QuantizedType,
    method: RangeMethod,
    correct_bias: bool = True,
    on_sample: OnSample | None = None,
) -> Mapping[str, QuantizedConvolution]:
    """How each of ``convolutions`` that may be quantised would be, by name.

    Two runs of FP32 over the samples: one for histograms, one for what quantisation adds to each channel in the mean,
    which is taken off its bias.

    Args:
        network: the FP32 graph.
        samples: to calibrate on.
        convolutions: of the graph; those that are kept are left out.
        ranges: as measured on the same samples.
        kind: ``int8`` or ``fp8``.
        method: of finding the magnitude at which activations are clipped.
        correct_bias: whether biases are put right.
        on_sample: told of progress, over both runs.
    """
    wanted = {entry.node for entry in convolutions if not entry.kept}
    nodes = [node for node in network.model.graph.node if node.name in wanted]
    reach = {name: entry.largest for name, entry in ranges.by_tensor().items()}
    histograms = Histograms({node.input[0]: reach[node.input[0]] for node in nodes})
    runs = 2 if correct_bias else 1
    tell = on_sample or (lambda _done, _all: None)
    walker = Walker(network.model)
    for index, sample in enumerate(samples):
        walker.run({network.input: network.feed(sample.blurred)}, histograms.visit)
        tell(index + 1, runs * len(samples))
    weights = {tensor.name: tensor for tensor in network.model.graph.initializer}
    drafts = {
        node.name: _draft(node, histograms.threshold(node.input[0], method, LEVELS[kind]), weights[node.input[1]], kind)
        for node in nodes
    }
    shifts = _Shifts(network, drafts, kind)
    if correct_bias:
        for index, sample in enumerate(samples):
            walker.run({network.input: network.feed(sample.blurred)}, shifts.visit)
            tell(len(samples) + index + 1, runs * len(samples))
    return {name: _finished(draft, weights, shifts.mean(name)) for name, draft in drafts.items()}


class _Shifts:
    """What quantising a convolution adds to each of its channels, in the mean, on operands of FP32."""

    def __init__(self, network: PictureNetwork, drafts: Mapping[str, _Draft], kind: QuantizedType) -> None:
        self._drafts = drafts
        self._kind: QuantizedType = kind
        self._runner = NodeRunner(network.model)
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}
        self._weights = {
            name: dequantized(draft.weight, draft.weight_scales.reshape(-1, 1, 1, 1), kind)
            for name, draft in drafts.items()
        }

    def visit(self, step: Step) -> None:
        """Run one convolution again, quantised."""
        draft = self._drafts.get(step.node.name)
        if draft is None:
            return
        operand = step.inputs[step.node.input[0]]
        wrap = type(operand).ortvalue_from_numpy
        inputs: dict[str, Any] = dict(step.inputs)
        inputs[step.node.input[0]] = wrap(dequantized(operand.numpy(), draft.input_scale, self._kind))
        inputs[step.node.input[1]] = wrap(self._weights[step.node.name])
        found = self._runner.run(step.node, inputs)[0].numpy()
        added = (found - step.outputs[step.node.output[0]].numpy()).mean(axis=(0, 2, 3), dtype=np.float64)
        self._sums[step.node.name] = self._sums.get(step.node.name, 0.0) + added
        self._counts[step.node.name] = self._counts.get(step.node.name, 0) + 1

    def mean(self, name: str) -> npt.NDArray[np.float64] | float:
        """By channel; zero if it was not measured."""
        return self._sums[name] / self._counts[name] if name in self._sums else 0.0


def _draft(node: onnx.NodeProto, threshold: float, weight: onnx.TensorProto, kind: QuantizedType) -> _Draft:
    values = numpy_helper.to_array(weight)
    return _Draft(
        node=node,
        input_scale=activation_scale(threshold, kind),
        weight=values,
        weight_scales=channel_scales(values, kind),
    )


def _finished(
    draft: _Draft, weights: Mapping[str, onnx.TensorProto], shift: npt.NDArray[np.float64] | float
) -> QuantizedConvolution:
    has_bias = len(draft.node.input) > 2 and draft.node.input[2]
    bias = numpy_helper.to_array(weights[draft.node.input[2]]) if has_bias else np.zeros(len(draft.weight), np.float32)
    return QuantizedConvolution(
        node=draft.node.name,
        tensor=draft.node.input[0],
        input_scale=draft.input_scale,
        weight=draft.weight,
        weight_scales=draft.weight_scales,
        bias=(bias - shift).astype(np.float32),
    )
