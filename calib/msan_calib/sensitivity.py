"""What each quantised block costs, and the largest set of blocks whose pictures stay within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from msan_calib.policy import Block
from msan_calib.qdq import QuantizedConvolution, insert_qdq
from msan_calib.quality import Evaluator, Quality
from msan_calib.scales import QuantizedType
from msan_runtime.errors import CheckFailedError

__all__ = ["ASSUMED_TRUTH_DB", "Choice", "Measured", "Point", "choose_blocks", "loss_db"]

ASSUMED_TRUTH_DB = 32.0
"""PSNR that FP32 pictures are taken to have where the sharp ones are not known: near the best published on GoPro."""

FRONTIER_SHARES = (0.25, 0.5, 0.75, 1.0)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A block quantised alone.

    Attributes:
        squared_error: mean over the samples against FP32, with peak 1, more than FP16 alone has.
    """

    block: Block
    squared_error: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A set of blocks on the held-out samples: the first ``blocks`` in the order of their cost.

    Attributes:
        flops_share: of all convolutions' operations that is quantised.
        loss_db: of picture quality against FP32.
        worst_db: least PSNR against the FP32 picture.
    """

    blocks: int
    flops_share: float
    loss_db: float
    worst_db: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The blocks that are quantised, and what was measured on the way.

    Attributes:
        model: the graph with these blocks quantised.
        measured: every block alone, least costly for its operations first.
        frontier: the sets that were measured, smallest first.
        truth_known: whether loss was measured against sharp pictures.
    """

    model: onnx.ModelProto
    blocks: tuple[Block, ...]
    point: Point
    measured: tuple[Measured, ...]
    frontier: tuple[Point, ...]
    truth_known: bool


def loss_db(reference: Quality, candidate: Quality) -> float:
    """PSNR that the candidate loses, in the mean over the pictures; infinite if one is broken.

    Against sharp pictures where they are known. Where not, what the difference from FP32 would cost pictures of
    ``ASSUMED_TRUTH_DB`` if it is independent of their own error: 10·log10(1 + MSE / MSE of the truth).
    """
    if candidate.worst_db == -math.inf:
        return math.inf
    if candidate.truth_db:
        return _mean(reference.truth_db) - _mean(candidate.truth_db)
    return 10 * math.log10(1 + squared_error(candidate) / 10 ** (-ASSUMED_TRUTH_DB / 10))


def squared_error(quality: Quality) -> float:
    """Mean squared error against FP32 over the pictures, with peak 1."""
    return _mean([0.0 if math.isinf(value) else 10 ** (-value / 10) for value in quality.psnr_db])


def choose_blocks(
    base: onnx.ModelProto,
    blocks: Sequence[Block],
    how: Mapping[str, QuantizedConvolution],
    kind: QuantizedType,
    *,
    budget_db: float,
    all_flops: int,
    calibration: Evaluator,
    held_out: Evaluator,
    say: Say = lambda _words: None,
) -> Choice:
    """Quantise as many of ``blocks`` as the budget allows.

    Each is measured alone on the calibration samples. Then the longest beginning of their order, least error for its
    operations first, that loses no more than the budget on the held-out samples is found by halving.

    Args:
        base: the FP16 graph.
        blocks: that may be quantised.
        how: each convolution would be quantised.
        kind: the type.
        budget_db: loss of picture quality that is allowed, above zero.
        all_flops: of all convolutions of the graph.
        calibration, held_out: evaluators on the two sets of samples.
        say: told of each step.

    Raises:
        CheckFailedError: if not even one block fits, with what it and FP16 alone lose.
    """
    chooser = _Chooser(base, how, kind, held_out, all_flops, say)
    measured = _measure_alone(chooser, blocks, calibration)
    chooser.order = [entry.block for entry in measured]
    count = chooser.largest_within(budget_db)
    if count == 0:
        raise CheckFailedError(_refusal(chooser, kind, budget_db))
    for share in FRONTIER_SHARES:
        chooser.point(max(1, round(share * len(chooser.order))))
    return Choice(
        model=chooser.model(count),
        blocks=tuple(chooser.order[:count]),
        point=chooser.point(count),
        measured=tuple(measured),
        frontier=tuple(chooser.points[key] for key in sorted(chooser.points)),
        truth_known=bool(held_out.reference().truth_db),
    )


class _Chooser:
    """Sets of blocks on the held-out samples; none is run twice."""

    def __init__(
        self,
        base: onnx.ModelProto,
        how: Mapping[str, QuantizedConvolution],
        kind: QuantizedType,
        held_out: Evaluator,
        all_flops: int,
        say: Say,
    ) -> None:
        self.order: list[Block] = []
        self.points: dict[int, Point] = {}
        self.say = say
        self._base = base
        self._how = how
        self._kind: QuantizedType = kind
        self._held_out = held_out
        self._all_flops = all_flops

    def with_blocks(self, blocks: Sequence[Block]) -> onnx.ModelProto:
        """The graph with ``blocks`` quantised."""
        return insert_qdq(self._base, [self._how[name] for block in blocks for name in block.nodes], self._kind)

    def model(self, count: int) -> onnx.ModelProto:
        """The graph with the first ``count`` blocks quantised."""
        return self.with_blocks(self.order[:count])

    def point(self, count: int) -> Point:
        """The first ``count`` blocks, measured."""
        if count not in self.points:
            quality = self._held_out.measure(self.model(count))
            share = sum(block.flops for block in self.order[:count]) / max(1, self._all_flops)
            self.points[count] = Point(
                blocks=count,
                flops_share=share,
                loss_db=loss_db(self._held_out.reference(), quality),
                worst_db=quality.worst_db,
            )
            self.say(f"{count} of {len(self.order)} blocks ({share:.0%} of FLOPs): {self.points[count].loss_db:.3f} dB")
        return self.points[count]

    def largest_within(self, budget_db: float) -> int:
        """How many blocks stay within the budget: all, or found by halving."""
        if not self.order or self.point(len(self.order)).loss_db <= budget_db:
            return len(self.order)
        fits, fails = 0, len(self.order)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self.point(middle).loss_db <= budget_db:
                fits = middle
            else:
                fails = middle
        return fits


def _measure_alone(chooser: _Chooser, blocks: Sequence[Block], calibration: Evaluator) -> list[Measured]:
    """Every block quantised alone, the least error for its operations first."""
    floor = squared_error(calibration.measure(chooser.with_blocks(())))
    found: list[Measured] = []
    for index, block in enumerate(blocks):
        quality = calibration.measure(chooser.with_blocks([block]))
        broken = quality.worst_db == -math.inf
        found.append(Measured(block=block, squared_error=math.inf if broken else squared_error(quality) - floor))
        chooser.say(f"block {index + 1} of {len(blocks)}, {block.name}: {quality.worst_db:.1f} dB at worst")
    return sorted(found, key=lambda entry: entry.squared_error / max(1, entry.block.flops))


def _refusal(chooser: _Chooser, kind: QuantizedType, budget_db: float) -> str:
    base = chooser.point(0).loss_db
    if not chooser.order:
        return f"nothing in the graph can be {kind}: every convolution is kept by the policy. Use --precision fp16"
    one = chooser.point(1).loss_db
    return (
        f"no block can be {kind} within {budget_db:g} dB: FP16 alone loses {base:.4f} dB, with "
        f"{chooser.order[0].name} it is {one:.4f} dB. Allow a larger --budget, or use --precision fp16"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
