"""What an acceptance test says: single checks, the worst pictures, scores on pairs, and the verdict of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from msan_export.acceptance.thresholds import Threshold, Thresholds
from msan_runtime.contract import PictureArray

__all__ = [
    "PAIR_METRICS",
    "SECTIONS",
    "Case",
    "Check",
    "Exhibit",
    "Interval",
    "PairMetric",
    "PairScores",
    "ParityReport",
    "Section",
    "Settings",
]

Section = Literal["files", "types", "tensors", "pictures", "pairs", "steadiness"]
SECTIONS: tuple[Section, ...] = get_args(Section)

PairMetric = Literal["psnr_db", "ssim_matlab3d", "ssim_skimage"]
PAIR_METRICS: tuple[PairMetric, ...] = get_args(PairMetric)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture to compare on.

    Attributes:
        picture: uint8 H×W×3 of any size.
        tile: (height, width) of the tiles that the runtime cuts it into; as it would by itself if left out.
    """

    name: str
    picture: PictureArray
    tile: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the verdict.

    Attributes:
        section: of the report.
        subject: what was checked: a file of the bundle, or ``backend NAME``.
        quantity: what was compared: ``origin``, ``graphs`` (none), ``self-test``, ``hash``, ``engine``, ``weights``,
            ``types`` (as built); ``d1`` … ``dN``, the outputs of the sub-networks; ``float`` or ``uint8`` pictures;
            ``scan`` (for NaN and black); ``typed`` (every result of every node in its own type); ``pairs``; ``twice``
            (the same input again), ``fixed`` (the graph with its input fixed to one size); ``first node``.
        case: the picture, or empty.
        passed: ``None`` if it was not run here; ``detail`` says why.
        max_difference, psnr_db: as measured, where pictures or tensors were compared.
        threshold: the bounds on these.
        detail: in words.
    """

    section: Section
    subject: str
    quantity: str
    case: str = ""
    passed: bool | None
    max_difference: float | None = None
    psnr_db: float | None = None
    threshold: Threshold | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """A picture as it was compared, to be looked at.

    Attributes:
        subject, case, passed, max_difference, psnr_db, threshold: of its check.
        blurred, expected, given: input, reference and result, uint8 H×W×3 of one shape.
    """

    subject: str
    case: str
    passed: bool
    max_difference: float
    psnr_db: float
    threshold: Threshold
    blurred: PictureArray
    expected: PictureArray
    given: PictureArray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % confidence interval; both ends are NaN if there is one value alone."""

    mean: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """A data set of pairs, each picture scored against the sharp one before and after conversion.

    Attributes:
        data_set: its name.
        subject: what was converted: a graph on a backend, in words.
        names: of the pictures.
        before, after: a figure for each picture: of the reference in PyTorch, and of the subject.
        change: ``after - before`` of each metric: mean over pictures, and its confidence interval.
        loss_bound_db: largest loss of PSNR allowed.
        passed: whether the loss is within the bound; ``None`` where the interval goes beyond it and the mean does not.
    """

    data_set: str
    subject: str
    names: tuple[str, ...]
    before: Mapping[PairMetric, tuple[float, ...]]
    after: Mapping[PairMetric, tuple[float, ...]]
    change: Mapping[PairMetric, Interval]
    loss_bound_db: float
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was compared with what, where, and by which bounds.

    Attributes:
        bundle: its name.
        manifest_sha256: of its manifest file; ``None`` in the report that a bundle itself holds, since the manifest
            names the report's own hash.
        checkpoint, checkpoint_sha256: file name and hash of the reference's weights.
        reference: in words, such as ``PyTorch 2.13 float32 on the CPU``.
        thresholds: all bounds.
        machine: of :func:`msan_runtime.machine.describe_machine`: processor, cores, system, python, versions, date.
        provenance: of the bundle's manifest.
    """

    bundle: str
    manifest_sha256: str | None
    checkpoint: str
    checkpoint_sha256: str
    reference: str
    thresholds: Thresholds
    machine: Mapping[str, object]
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Every check of a bundle against a checkpoint.

    Attributes:
        settings: what was compared, and how.
        checks: all of them.
        worst: the ten pictures nearest to their bound of PSNR or furthest below it, worst first.
        pairs: scores on data sets of pairs, where some were given.
    """

    settings: Settings
    checks: tuple[Check, ...]
    worst: tuple[Exhibit, ...] = ()
    pairs: tuple[PairScores, ...] = ()

    @property
    def bundle(self) -> str:
        """Name of the bundle."""
        return self.settings.bundle

    @property
    def passed(self) -> bool:
        """Whether nothing failed and at least one picture was compared."""
        pictures = [check for check in self.checks if check.psnr_db is not None]
        return bool(pictures) and all(check.passed is not False for check in self.checks)
