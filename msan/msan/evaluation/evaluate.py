"""Evaluation: scores of blurred and of deblurred pictures against the sharp ones, picture by picture."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msan.data.readers import DatasetError
from msan.evaluation.methods import Method, deblur_with_network
from msan.evaluation.metrics import psnr_db
from msan.evaluation.published import reason_not_full
from msan.evaluation.sets import EvaluationSet, MeasuredPair, OnBad
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MissingExtraError, MsanError

__all__ = [
    "ALIGNED_LAYOUTS",
    "Evaluation",
    "Metric",
    "OnPicture",
    "PictureScore",
    "Scores",
    "Skipped",
    "SsimName",
    "deblur_with_network",
    "evaluate",
    "metrics_of",
    "score",
]

SsimName = Literal["matlab3d", "skimage"]

Metric = Literal["psnr_db", "ssim_matlab3d", "ssim_skimage", "aligned_psnr_db", "aligned_ssim"]

Scores = Mapping[Metric, float]
"""A picture's figures against the sharp one, by the metric's name."""

ALIGNED_LAYOUTS = frozenset({"realblur-j", "realblur-r"})
"""Blurred and sharp pictures come from two cameras: measured after alignment, as their authors do."""


@dataclass(frozen=True, kw_only=True)
class PictureScore:
    """Figures of one picture, before and after deblurring.

    Attributes:
        name: in its set.
        size: (height, width) in pixels.
        blurred: of the input, and ``deblurred``: of the method's output, both against the sharp picture.
        time_ms: that the method took; ``None`` where it ran elsewhere.
        length_px: of the camera's path, where that is known.
    """

    name: str
    size: tuple[int, int]
    blurred: Scores
    deblurred: Scores
    time_ms: float | None = None
    length_px: float | None = None

    @property
    def gain_db(self) -> float:
        """PSNR gained over the blurred input."""
        return _difference(self.deblurred["psnr_db"], self.blurred["psnr_db"])

    @property
    def quoted_gain_db(self) -> float:
        """The gain in the PSNR that is quoted for the set: after alignment where that is measured."""
        if "aligned_psnr_db" not in self.deblurred:
            return self.gain_db
        return _difference(self.deblurred["aligned_psnr_db"], self.blurred["aligned_psnr_db"])


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A picture that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a set of pictures. Means are over pictures; one infinite PSNR makes a mean infinite.

    Raises:
        DatasetError: if there is no score.
    """

    measured_set: EvaluationSet
    scores: tuple[PictureScore, ...]
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if not self.scores:
            raise DatasetError(f"no picture of {self.measured_set.name} could be measured")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured."""
        return tuple(self.scores[0].blurred)

    def blurred(self, metric: Metric) -> float:
        """Mean figure of the blurred pictures."""
        return statistics.fmean(one.blurred[metric] for one in self.scores)

    def deblurred(self, metric: Metric) -> float:
        """Mean figure of the deblurred pictures."""
        return statistics.fmean(one.deblurred[metric] for one in self.scores)

    @property
    def gain_db(self) -> float:
        """Mean PSNR gained over the blurred input."""
        return _difference(self.deblurred("psnr_db"), self.blurred("psnr_db"))

    @property
    def quoted_gain_db(self) -> float:
        """Mean gain in the PSNR that is quoted for the set: after alignment where that is measured."""
        metric: Metric = "aligned_psnr_db" if "aligned_psnr_db" in self.metrics else "psnr_db"
        return _difference(self.deblurred(metric), self.blurred(metric))

    @property
    def worse(self) -> int:
        """Pictures whose PSNR is lower after than before."""
        return sum(one.gain_db < 0 for one in self.scores)

    @property
    def times_ms(self) -> tuple[float, ...]:
        """Of every picture that was timed."""
        return tuple(one.time_ms for one in self.scores if one.time_ms is not None)

    @property
    def reason_not_full(self) -> str | None:
        """Why published figures may not stand beside these scores, in words; ``None`` if they may."""
        chosen = self.measured_set
        return reason_not_full(
            chosen.name,
            layout=chosen.layout,
            split=chosen.split,
            pairs=len(chosen.all_files),
            measured=len(self.scores),
            limited=chosen.limit is not None,
        )


OnPicture = Callable[[PictureScore, MeasuredPair, PictureArray], None]
"""Called after each picture with its score, its pair and the deblurred picture."""


def evaluate(
    chosen: EvaluationSet,
    method: Method,
    *,
    ssim: Sequence[SsimName] = ("matlab3d", "skimage"),
    skip_bad: bool = False,
    on_picture: OnPicture | None = None,
    on_skipped: OnBad | None = None,
) -> Evaluation:
    """Deblur every blurred picture of ``chosen``, one at a time, and score it against the sharp one.

    The first picture is deblurred once more beforehand, so that no time holds the warming up.

    Args:
        chosen: the pictures.
        method: what deblurs.
        ssim: which definitions of SSIM to compute.
        skip_bad: leave out pictures that cannot be read or measured, and list them.
        on_picture: see ``OnPicture``.
        on_skipped: called with each name left out, and the reason.

    Raises:
        DatasetError: for a picture that cannot be measured, without ``skip_bad``; or if none is left.
        MsanError: for one that cannot be read, without ``skip_bad``; or if the method fails.
    """
    metrics = metrics_of(chosen, ssim)
    scores: list[PictureScore] = []
    skipped: list[Skipped] = []

    def skip(name: str, reason: str) -> None:
        skipped.append(Skipped(name=name, reason=reason))
        if on_skipped is not None:
            on_skipped(name, reason)

    for pair in chosen.pairs(on_bad=skip if skip_bad else None):
        if method.timed and not scores:
            method.deblur(pair)
        started = time.perf_counter()
        deblurred = method.deblur(pair)
        time_ms = 1000 * (time.perf_counter() - started) if method.timed else None
        try:
            result = _picture_score(pair, deblurred, metrics, time_ms)
        except MissingExtraError:
            raise
        except MsanError as error:
            if not skip_bad:
                raise DatasetError(f"{chosen.name}, {pair.name} ({pair.file}): {error}") from error
            skip(pair.name, str(error))
            continue
        scores.append(result)
        if on_picture is not None:
            on_picture(result, pair, deblurred)
    return Evaluation(measured_set=chosen, scores=tuple(scores), skipped=tuple(skipped))


def metrics_of(chosen: EvaluationSet, ssim: Sequence[SsimName]) -> tuple[Metric, ...]:
    """What is measured on a set: PSNR, SSIM as asked for, and both after alignment on RealBlur."""
    metrics: list[Metric] = ["psnr_db"]
    if "matlab3d" in ssim:
        metrics.append("ssim_matlab3d")
    if "skimage" in ssim:
        metrics.append("ssim_skimage")
    if chosen.layout in ALIGNED_LAYOUTS:
        metrics.append("aligned_psnr_db")
        if ssim:
            metrics.append("aligned_ssim")
    return tuple(metrics)


def score(picture: PictureArray, sharp: PictureArray, metrics: Sequence[Metric]) -> Scores:
    """Each metric of ``picture`` against ``sharp``, uint8 H×W×3 both.

    Raises:
        ContractError: if they cannot be compared.
        AlignmentError: if they cannot be aligned, where that is asked for.
        MissingExtraError: if a package that computes a metric is not installed.
    """
    from msan.evaluation.alignment import align, aligned_psnr_db, aligned_ssim
    from msan.evaluation.ssim import ssim_matlab3d, ssim_skimage

    direct: Mapping[Metric, Callable[[PictureArray, PictureArray], float]] = {
        "psnr_db": psnr_db,
        "ssim_matlab3d": ssim_matlab3d,
        "ssim_skimage": ssim_skimage,
    }
    scores: dict[Metric, float] = {name: direct[name](picture, sharp) for name in metrics if name in direct}
    if "aligned_psnr_db" in metrics:
        aligned = align(picture, sharp)
        scores["aligned_psnr_db"] = aligned_psnr_db(aligned)
        if "aligned_ssim" in metrics:
            scores["aligned_ssim"] = aligned_ssim(aligned)
    return scores


def _picture_score(
    pair: MeasuredPair, deblurred: PictureArray, metrics: Sequence[Metric], time_ms: float | None
) -> PictureScore:
    height, width = pair.sharp.shape[:2]
    return PictureScore(
        name=pair.name,
        size=(height, width),
        blurred=score(pair.blurred, pair.sharp, metrics),
        deblurred=score(deblurred, pair.sharp, metrics),
        time_ms=time_ms,
        length_px=pair.length_px,
    )


def _difference(after: float, before: float) -> float:
    """``after - before``; 0 for two infinite values."""
    return 0.0 if after == before else after - before
