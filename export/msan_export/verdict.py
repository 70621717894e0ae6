"""What verification says: pictures to compare on, single checks, and the verdict of all."""

from __future__ import annotations

from dataclasses import dataclass

from msan_export.thresholds import Threshold
from msan_runtime.contract import PictureArray

__all__ = ["Case", "Check", "ParityReport"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture to compare on: uint8 H×W×3 of any size."""

    name: str
    picture: PictureArray


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the verdict.

    Attributes:
        subject: what was checked: a file of the bundle, or a backend.
        quantity: what was compared: ``hash``, ``weights``, ``float`` or ``uint8`` pictures, ``typed`` (every
            result of every node in its own type), ``twice`` (the same input again), ``fixed`` (the graph with its
            input fixed to one size).
        case: the picture, or empty.
        passed: ``None`` if it was not run here; ``detail`` says why.
        max_difference, psnr_db: as measured, for pictures.
        threshold: the bounds, for pictures.
        detail: in words.
    """

    subject: str
    quantity: str
    case: str = ""
    passed: bool | None
    max_difference: float | None = None
    psnr_db: float | None = None
    threshold: Threshold | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Every check of a bundle against a checkpoint."""

    bundle: str
    checkpoint_sha256: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and at least one picture was compared."""
        pictures = [check for check in self.checks if check.psnr_db is not None]
        return bool(pictures) and all(check.passed is not False for check in self.checks)
