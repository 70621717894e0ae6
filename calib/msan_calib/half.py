"""FP16 with proof: the smallest set of nodes that stays FP32 so that nothing overflows and pictures stay near FP32.

The search knows no names of layers. Nodes that FP16 cannot hold are found from the ranges in one run. If pictures are
still too far from FP32, the nodes are put in the order of the error that each makes by itself, and the shortest
beginning of that order that suffices is found by doubling and halving: at most 2·log2(N) + 5 runs for one bad node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from msan_calib.casts import FLOAT16_MAX, cast_to_float16, default_islands, half_inputs
from msan_calib.network import PictureNetwork
from msan_calib.quality import Evaluator, Quality
from msan_calib.ranges import Ranges, measure_ranges
from msan_calib.samples import Sample
from msan_calib.walk import NodeRunner, Step, Walker
from msan_runtime.errors import CheckFailedError

__all__ = ["DEFAULT_LEAST_PSNR_DB", "DEFAULT_MARGIN", "HalfPlan", "Island", "plan_float16"]

DEFAULT_LEAST_PSNR_DB = 55.0
DEFAULT_MARGIN = 4.0
"""Pictures that are not among the samples may reach further: no sample may come nearer to the end of FP16 than this."""

MOST_EXPLAINED = 8
"""Islands whose gain is measured one by one, at a run each; of more, only that of all together is."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Island:
    """A node that stays FP32.

    Attributes:
        reason: in words.
        kind: ``overflow``, ``accuracy``, or ``form`` for what is FP32 by the form of the graph.
        buys_db: worst PSNR with it less that without it; ``None`` if not measured; infinite if pictures break without.
    """

    node: str
    op_type: str
    kind: str
    reason: str
    buys_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class HalfPlan:
    """An FP16 graph and why it is as it is.

    Attributes:
        model: the graph.
        quality, plain: of this graph, and with the islands of the graph's form alone.
        evaluations: runs over the samples that the search took.
        explained_with: further runs, to say what single islands buy.
        casts: Cast operators that the graph has more than the FP32 graph.
    """

    model: onnx.ModelProto
    islands: tuple[Island, ...]
    quality: Quality
    plain: Quality
    ranges: Ranges
    evaluations: int
    explained_with: int
    casts: int


def plan_float16(
    network: PictureNetwork,
    samples: Sequence[Sample],
    *,
    least_psnr_db: float = DEFAULT_LEAST_PSNR_DB,
    margin: float = DEFAULT_MARGIN,
    say: Say = lambda _words: None,
) -> HalfPlan:
    """Find the nodes that must stay FP32, and write the rest in FP16.

    Args:
        network: the FP32 graph.
        samples: to measure on.
        least_psnr_db: that every sample must reach against FP32.
        margin: by which every FP16 tensor must stay below 65,504 on the samples.
        say: told of each step.

    Raises:
        CalibrationError: if the graph cannot be run.
        CheckFailedError: if not even FP32 everywhere reaches it, which a graph that is not deterministic does not.
    """
    say(f"running FP32 on {len(samples)} samples")
    references: list[npt.NDArray[Any]] = []
    ranges = measure_ranges(network, samples, on_output=lambda _index, picture: references.append(picture))
    search = _Search(network, Evaluator(network, samples, references), least_psnr_db, say)
    search.evaluator.evaluations = 1
    form = {node.name for node in network.model.graph.node if node.name in default_islands(network.model)}
    overflow = _overflowing(network, ranges, margin)
    base = form | set(overflow)
    quality = search.measure(base)
    accuracy: list[str] = []
    if not quality.worst_db >= least_psnr_db:
        accuracy = search.grow(base, _by_own_error(network, samples[0], base, search.evaluator))
        quality = search.measure(base | set(accuracy))
    # A weight beyond FP16 cannot be cast at all: then the pictures are broken without a run.
    plain = search.measure(form) if _castable(network, form) else Quality(psnr_db=(math.nan,))
    spent = search.evaluator.evaluations
    islands = _explained(search, form, overflow, accuracy, quality, plain)
    model = cast_to_float16(network.model, base | set(accuracy))
    return HalfPlan(
        model=model,
        islands=islands,
        quality=quality,
        plain=plain,
        ranges=ranges,
        evaluations=spent,
        explained_with=search.evaluator.evaluations - spent,
        casts=_casts(model) - _casts(network.model),
    )


class _Search:
    """Candidates by their set of FP32 nodes; none is run twice."""

    def __init__(self, network: PictureNetwork, evaluator: Evaluator, least_psnr_db: float, say: Say) -> None:
        self.network = network
        self.evaluator = evaluator
        self.least_psnr_db = least_psnr_db
        self.known: dict[frozenset[str], Quality] = {}
        self._verdicts: dict[frozenset[str], bool] = {}
        self._say = say
        self._most = 2 * math.ceil(math.log2(max(2, len(network.model.graph.node)))) + 5

    def measure(self, islands: set[str]) -> Quality:
        """Quality on every sample."""
        key = frozenset(islands)
        if key not in self.known:
            self.known[key] = self.evaluator.measure(cast_to_float16(self.network.model, islands))
            self._say(f"{len(islands)} nodes in FP32: {_words(self.known[key].worst_db)} at worst")
        return self.known[key]

    def suffices(self, islands: set[str]) -> bool:
        """Whether every sample reaches the bound."""
        key = frozenset(islands)
        if key in self.known:
            return self.known[key].worst_db >= self.least_psnr_db
        if key not in self._verdicts:
            candidate = cast_to_float16(self.network.model, islands)
            self._verdicts[key] = self.evaluator.reaches(candidate, self.least_psnr_db)
            self._say(f"{len(islands)} nodes in FP32: {'enough' if self._verdicts[key] else 'not enough'}")
        return self._verdicts[key]

    def grow(self, base: set[str], order: Sequence[str]) -> list[str]:
        """Few nodes of ``order`` that suffice together with ``base``.

        The last node of the shortest beginning that suffices is needed; what of the beginning is needed before it is
        found in the same way, until nothing is or the runs are spent.
        """
        needed: list[str] = []
        beginning = list(order)
        while not self.suffices(base | set(needed)):
            length = self._shortest(base | set(needed), beginning)
            if length is None:
                raise CheckFailedError(
                    f"even with every node in FP32 the pictures stay under {self.least_psnr_db:g} dB: "
                    "the graph does not give the same picture twice, or the budget is too strict"
                )
            needed.append(beginning[length - 1])
            beginning = beginning[: length - 1]
            if self.evaluator.evaluations >= self._most and not self.suffices(base | set(needed)):
                return [*needed, *beginning]
        return needed

    def _shortest(self, base: set[str], order: Sequence[str]) -> int | None:
        """How many of the first nodes of ``order`` suffice: doubled until they do, then halved back."""
        fails, length = 0, 1
        while not self.suffices(base | set(order[:length])):
            if length >= len(order):
                return None
            fails, length = length, min(2 * length, len(order))
        while length - fails > 1:
            middle = (fails + length) // 2
            if self.suffices(base | set(order[:middle])):
                length = middle
            else:
                fails = middle
        return length


def _overflowing(network: PictureNetwork, ranges: Ranges, margin: float) -> Mapping[str, str]:
    """Nodes that make, take or hold what FP16 does not with the margin, and why."""
    beyond = {
        entry.tensor: f"{entry.tensor} reaches {entry.largest:.3g}"
        for entry in ranges.tensors
        if entry.largest * margin > FLOAT16_MAX
    }
    for tensor in network.model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if largest > FLOAT16_MAX:
                beyond[tensor.name] = f"weight {tensor.name} reaches {largest:.3g}"
    found: dict[str, str] = {}
    for node in network.model.graph.node:
        # What takes the tensor without FP16 form (a cast to bytes, say) has no say in it.
        for name in (*node.output, *node.input):
            if name in beyond and node.name not in found:
                found[node.name] = f"{beyond[name]}, FP16 ends at {FLOAT16_MAX:,.0f} (margin {margin:g})"
    return found


def _by_own_error(network: PictureNetwork, sample: Sample, base: set[str], evaluator: Evaluator) -> list[str]:
    """Nodes in the order of the error that each makes alone in FP16, on FP32 operands; one more run."""
    evaluator.evaluations += 1
    runner = NodeRunner(network.model)
    errors: dict[str, float] = {}

    def compare(step: Step) -> None:
        if step.node.name not in base and step.float_outputs():
            errors[step.node.name] = _own_error(network, runner, step)

    Walker(network.model, runner=runner).run({network.input: network.feed(sample.blurred)}, compare)
    return sorted(errors, key=lambda name: errors[name], reverse=True)


def _own_error(network: PictureNetwork, runner: NodeRunner, step: Step) -> float:
    """Error of a node's results in FP16 over their energy; infinite if they are not finite."""
    halves = half_inputs(step.node, network.model)
    inputs = {name: _as_half(value) if name in halves else value for name, value in step.inputs.items()}
    results = runner.run(step.node, inputs)
    worst = 0.0
    for exact, result in zip(step.outputs.values(), results, strict=True):
        if exact.element_type() == TensorProto.FLOAT:
            expected = exact.numpy().astype(np.float64)
            found = result.numpy().astype(np.float16).astype(np.float64)
            error = float(np.square(found - expected).sum() / max(np.square(expected).sum(), 1e-300))
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _as_half(value: Any) -> Any:
    if value.element_type() != TensorProto.FLOAT:
        return value
    with np.errstate(over="ignore"):
        return type(value).ortvalue_from_numpy(value.numpy().astype(np.float16))


def _explained(
    search: _Search,
    form: set[str],
    overflow: Mapping[str, str],
    accuracy: Sequence[str],
    quality: Quality,
    plain: Quality,
) -> tuple[Island, ...]:
    """Every island with its reason and, of accuracy, what it buys."""
    buys = {name: _gain(quality, plain) for name in overflow if name not in form}
    everything = form | set(overflow) | set(accuracy)
    for name in accuracy:
        alone = len(accuracy) == 1 or len(accuracy) <= MOST_EXPLAINED
        buys[name] = _gain(quality, search.measure(everything - {name})) if alone else _gain(quality, plain)
    found: list[Island] = []
    for node in search.network.model.graph.node:
        if node.name not in everything:
            continue
        kind = "overflow" if node.name in overflow else "accuracy" if node.name in accuracy else "form"
        reason = {"overflow": overflow.get(node.name, ""), "form": _form_reason(node)}.get(
            kind, f"without it the pictures are under {search.least_psnr_db:g} dB"
        )
        found.append(
            Island(node=node.name, op_type=node.op_type, kind=kind, reason=reason, buys_db=buys.get(node.name))
        )
    return tuple(found)


def _form_reason(node: onnx.NodeProto) -> str:
    if node.op_type == "Attention":
        return "attention accumulates in FP32; its operands are FP16 in memory"
    return "arithmetic on the picture itself, whose levels FP16 cannot tell apart near white"


def _gain(quality: Quality, without: Quality) -> float:
    if without.worst_db == -math.inf:
        return math.inf
    return quality.worst_db - without.worst_db if math.isfinite(without.worst_db) else 0.0


def _castable(network: PictureNetwork, islands: set[str]) -> bool:
    """Whether every weight outside of ``islands`` fits into FP16 at all."""
    held = {
        tensor.name
        for tensor in network.model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0)) > FLOAT16_MAX
    }
    users = {node.name for node in network.model.graph.node if held.intersection(node.input)}
    return users <= islands


def _casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in model.graph.node)


def _words(worst_db: float) -> str:
    return "broken pictures" if worst_db == -math.inf else f"{worst_db:.1f} dB"
