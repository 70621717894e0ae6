"""From an FP32 graph to a typed one: FP16 with islands, then INT8 or FP8 where pictures allow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy.typing as npt
import onnx

from msan_calib.half import DEFAULT_LEAST_PSNR_DB, DEFAULT_MARGIN, HalfPlan, plan_float16
from msan_calib.network import CalibrationError, PictureNetwork
from msan_calib.policy import Convolution, FlopCounter, blocks_of, convolutions_of
from msan_calib.quality import Evaluator
from msan_calib.quantize import quantize_convolutions
from msan_calib.samples import Sample, SampleSet
from msan_calib.scales import METHODS, QuantizedType, RangeMethod
from msan_calib.sensitivity import Choice, choose_blocks
from msan_calib.walk import Walker

__all__ = ["DEFAULT_BUDGET_DB", "CalibratedGraph", "CalibratedPrecision", "CalibrationOptions", "calibrate"]

CalibratedPrecision = Literal["fp16", "int8", "fp8"]
DEFAULT_BUDGET_DB = 0.10
SENSITIVITY_SAMPLES = 4
"""Blocks are put in order on so many of the calibration samples; the choice is made on all that are held out."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What is asked for.

    Attributes:
        precision: ``fp16``, or ``int8`` or ``fp8`` where it fits the budget.
        budget_db: of picture quality that INT8 or FP8 may lose against FP32.
        least_psnr_db: that FP16 pictures must have against FP32 ones.
        margin: by which FP16 tensors stay below 65,504 on the samples.
        method: of clipping INT8 activations; FP8, a floating-point type, is never clipped.
        correct_bias: whether the mean shift by quantisation is taken off biases.
    """

    precision: CalibratedPrecision = "fp16"
    budget_db: float = DEFAULT_BUDGET_DB
    least_psnr_db: float = DEFAULT_LEAST_PSNR_DB
    margin: float = DEFAULT_MARGIN
    method: RangeMethod = "mse"
    correct_bias: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.budget_db < 100:
            raise CalibrationError(f"a budget is more than 0 dB, for example 0.10dB, not {self.budget_db:g}")
        if not 0 < self.least_psnr_db < 200:
            raise CalibrationError(f"the least PSNR is more than 0 dB, for example 55, not {self.least_psnr_db:g}")
        if not 1 <= self.margin <= 1024:
            raise CalibrationError(f"the margin is a factor from 1 to 1024, not {self.margin:g}")
        if self.method not in METHODS:
            raise CalibrationError(f"no method {self.method!r}. There are: {', '.join(METHODS)}")


@dataclass(frozen=True, kw_only=True)
class CalibratedGraph:
    """A typed graph and why it is as it is.

    Attributes:
        half: the FP16 graph that it is made of.
        choice: of blocks, for INT8 and FP8.
        convolutions: all, with the reason of those that are kept.
    """

    model: onnx.ModelProto
    options: CalibrationOptions
    samples: SampleSet
    half: HalfPlan
    choice: Choice | None = None
    convolutions: tuple[Convolution, ...] = field(default=())

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the convolutions that are quantised."""
        return () if self.choice is None else tuple(name for block in self.choice.blocks for name in block.nodes)


def calibrate(
    network: PictureNetwork,
    samples: SampleSet,
    options: CalibrationOptions,
    *,
    say: Callable[[str], None] = lambda _words: None,
) -> CalibratedGraph:
    """Decide the types of ``network`` on ``samples``.

    Args:
        network: the FP32 graph.
        samples: crops; INT8 and FP8 need some that are held out.
        options: what is asked for.
        say: told of each step.

    Raises:
        CalibrationError: if the graph or the samples do not serve.
        CheckFailedError: if the budget allows no quantised block, or FP16 cannot reach its PSNR.
    """
    quantizes = options.precision != "fp16"
    if quantizes and not samples.held_out:
        raise CalibrationError("INT8 and FP8 are checked on pictures of their own: give two pictures or more")
    half = plan_float16(
        network, samples.calibration, least_psnr_db=options.least_psnr_db, margin=options.margin, say=say
    )
    if not quantizes:
        return CalibratedGraph(model=half.model, options=options, samples=samples, half=half)
    kind: QuantizedType = "fp8" if options.precision == "fp8" else "int8"
    counter = FlopCounter()
    first = samples.calibration[0]
    Walker(network.model).run({network.input: network.feed(first.blurred)}, counter.visit)
    islands = {island.node for island in half.islands}
    convolutions = convolutions_of(network.model, counter.flops, islands)
    say(f"calibrating {kind} on {len(samples.calibration)} samples")
    how = quantize_convolutions(
        network,
        samples.calibration,
        convolutions,
        half.ranges,
        kind=kind,
        method=options.method if kind == "int8" else "minmax",
        correct_bias=options.correct_bias,
    )
    choice = choose_blocks(
        half.model,
        blocks_of(network.model, convolutions),
        how,
        kind,
        budget_db=options.budget_db,
        all_flops=sum(entry.flops for entry in convolutions),
        calibration=_evaluator(network, samples.calibration[:SENSITIVITY_SAMPLES]),
        held_out=_evaluator(network, samples.held_out),
        say=say,
    )
    return CalibratedGraph(
        model=choice.model, options=options, samples=samples, half=half, choice=choice, convolutions=convolutions
    )


def _evaluator(network: PictureNetwork, samples: Sequence[Sample]) -> Evaluator:
    """An evaluator whose references are the FP32 pictures."""
    walker = Walker(network.model)
    references: list[npt.NDArray[Any]] = [
        walker.run({network.input: network.feed(sample.blurred)})[network.output] for sample in samples
    ]
    return Evaluator(network, samples, references)
