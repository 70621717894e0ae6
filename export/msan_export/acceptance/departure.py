"""The first node of a graph that leaves what the network computes: both graphs run node by node on one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from msan_calib.walk import Step, Walker
from msan_runtime.contract import OUTPUT_NAME

__all__ = ["Departure", "first_departure", "off_words"]

Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A node, its operator, and how its output is off, in words."""

    node: str
    operator: str
    words: str

    def __str__(self) -> str:
        return f"first node off is {self.node} ({self.operator}): {self.words}"


def first_departure(
    model: onnx.ModelProto, reference: onnx.ModelProto, feed: Mapping[str, npt.NDArray[Any]], *, tolerance: float
) -> Departure | None:
    """The first node of ``model``, in the order in which it runs, whose output is not that of ``reference``.

    Outputs are matched by the tensor's name, which casting and quantising keep; NaN and infinity count in any tensor.
    The saved picture is compared, too.

    Args:
        model: the graph that is off.
        reference: the FP32 graph of the same network.
        feed: inputs of both.
        tolerance: RMS of the error over RMS of the tensor. What a type loses by rounding adds up from node to node and
            stays well below; a changed weight, an overflow or an underflow does not.

    Raises:
        CalibrationError: if a node cannot be run.
    """
    expected: Arrays = {}

    def remember(step: Step) -> None:
        expected.update(_results(step))

    Walker(reference).run(feed, remember)
    found: list[Departure] = []

    def look(step: Step) -> None:
        for name, values in _results(step).items():
            words = None if found else off_words(values, expected.get(name), tolerance)
            if words is not None:
                found.append(Departure(node=step.node.name or name, operator=step.node.op_type, words=words))

    Walker(model).run(feed, look)
    return found[0] if found else None


def _results(step: Step) -> Arrays:
    """What a node gave, as far as it is floating-point or the saved picture."""
    given = dict(step.float_outputs())
    if OUTPUT_NAME in step.outputs:
        given[OUTPUT_NAME] = step.outputs[OUTPUT_NAME].numpy()
    return {name: values.astype(np.float32) for name, values in given.items()}


def off_words(
    values: npt.NDArray[np.float32], expected: npt.NDArray[np.float32] | None, tolerance: float
) -> str | None:
    """How ``values`` are off; ``None`` if they are not, or nothing is known of them.

    ``tolerance`` bounds the RMS of the error over that of ``expected``.
    """
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinity"
        share = 1 - np.isfinite(values).mean()
        return f"{share:.1%} of its values are {kind}, as where a type is too small for them"
    if expected is None:
        return None
    if values.shape != expected.shape:
        return f"its shape is {values.shape}, not {expected.shape}"
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(values.astype(np.float64) - expected))))
    if error <= tolerance * size or error == 0:
        return None
    return f"its error is {error / size if size else float('inf'):.3g} of its size (≤ {tolerance:g})"
