"""How far the pictures of a candidate graph are from those of the FP32 graph, and from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from msan_calib.network import PictureNetwork
from msan_calib.samples import Sample
from msan_calib.walk import NodeRunner, Walker

__all__ = ["Evaluator", "Quality", "psnr_db"]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A candidate on every sample.

    Attributes:
        psnr_db: PSNR against the FP32 picture; infinite if equal, NaN if a value is not finite.
        truth_db: PSNR against the sharp picture; empty if none are known, or of another size.
    """

    psnr_db: tuple[float, ...]
    truth_db: tuple[float, ...] = ()

    @property
    def worst_db(self) -> float:
        """The least PSNR against FP32; minus infinity if a picture holds NaN or infinity."""
        return min(-math.inf if math.isnan(value) else value for value in self.psnr_db)


class Evaluator:
    """Runs candidates on the same samples, node by node, and counts them.

    Attributes:
        evaluations: graphs that were run over the samples so far; a run that stops early counts too.
    """

    def __init__(
        self, network: PictureNetwork, samples: Sequence[Sample], references: Sequence[npt.NDArray[Any]]
    ) -> None:
        self.network = network
        self.samples = tuple(samples)
        self.evaluations = 0
        self._references = [network.picture(reference) for reference in references]
        self._runner = NodeRunner(network.model)
        self._order = list(range(len(self.samples)))

    def measure(self, model: onnx.ModelProto) -> Quality:
        """PSNR of ``model`` on every sample."""
        self.evaluations += 1
        walker = Walker(model, runner=self._runner)
        pictures = [self._picture(walker, index) for index in range(len(self.samples))]
        against_fp32 = tuple(psnr_db(ours, theirs) for ours, theirs in zip(pictures, self._references, strict=True))
        return Quality(psnr_db=against_fp32, truth_db=self._truth(pictures))

    def reference(self) -> Quality:
        """The FP32 pictures themselves."""
        return Quality(psnr_db=(math.inf,) * len(self.samples), truth_db=self._truth(self._references))

    def reaches(self, model: onnx.ModelProto, least_psnr_db: float) -> bool:
        """Whether every sample does; stops at the first that does not, and tries that one first next time."""
        self.evaluations += 1
        walker = Walker(model, runner=self._runner)
        for index in list(self._order):
            if not psnr_db(self._picture(walker, index), self._references[index]) >= least_psnr_db:
                self._order.remove(index)
                self._order.insert(0, index)
                return False
        return True

    def _picture(self, walker: Walker, index: int) -> npt.NDArray[np.float64]:
        feed = self.network.feed(self.samples[index].blurred)
        return self.network.picture(walker.run({self.network.input: feed})[self.network.output])

    def _truth(self, pictures: Sequence[npt.NDArray[np.float64]]) -> tuple[float, ...]:
        if not all(sample.sharp is not None for sample in self.samples):
            return ()
        sharp = [self.network.picture(self.network.feed(s.sharp)) for s in self.samples if s.sharp is not None]
        # A network that changes the size of pictures has another truth than the samples know.
        if any(ours.shape != theirs.shape for ours, theirs in zip(pictures, sharp, strict=True)):
            return ()
        return tuple(psnr_db(np.clip(ours, 0, 1), theirs) for ours, theirs in zip(pictures, sharp, strict=True))


def psnr_db(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """PSNR with peak 1; infinite if equal, NaN if a value is not finite or the shapes differ."""
    if one.shape != other.shape:
        return math.nan
    error = float(np.mean(np.square(one - other)))
    if not math.isfinite(error):
        return math.nan
    return math.inf if error == 0 else -10 * math.log10(error)
