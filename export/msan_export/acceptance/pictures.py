"""Pictures as they were compared: scanned for NaN and for black, and the worst of them kept to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from msan_export.acceptance.thresholds import Thresholds
from msan_export.acceptance.verdict import Check, Exhibit
from msan_runtime.contract import PictureArray

__all__ = ["EXHIBITS", "EXHIBIT_SIDE_PX", "Gallery"]

EXHIBITS = 10
"""As many of the worst pictures are kept."""

EXHIBIT_SIDE_PX = 640
"""Of larger pictures, the part around the worst pixel is kept."""


@dataclass
class _Scan:
    """What was seen of one subject."""

    pictures: int = 0
    not_finite: list[str] = field(default_factory=list[str])
    black: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])


class Gallery:
    """Looks at every picture that is compared.

    Attributes:
        worst: the pictures nearest to their bound, worst first, at most ``EXHIBITS``.
    """

    def __init__(self, bounds: Thresholds) -> None:
        self.worst: list[Exhibit] = []
        self._bounds = bounds
        self._scans: dict[str, _Scan] = {}

    def look(self, check: Check, blurred: PictureArray, expected: PictureArray, given: PictureArray) -> None:
        """Take note of a compared picture, uint8 H×W×3 each, and of its ``check``."""
        scan = self._scans.setdefault(check.subject, _Scan())
        scan.pictures += 1
        if expected.shape != given.shape:
            return
        # Not-a-number becomes 0 when a picture is rounded to 8 bits.
        limit = self._bounds.uint8.max_difference if check.threshold is None else check.threshold.max_difference
        share = float(np.mean((given.max(axis=2) == 0) & (expected.max(axis=2) > limit)))
        if share > self._bounds.black_share:
            scan.black.append((share, check.case))
        self._keep(check, blurred, expected, given)

    def note_not_finite(self, subject: str, case: str) -> None:
        """Take note of a picture that held NaN or infinity before it was rounded."""
        self._scans.setdefault(subject, _Scan()).not_finite.append(case)

    def scans(self) -> Iterator[Check]:
        """A check for each subject."""
        for subject, scan in self._scans.items():
            yield Check(
                section="pictures",
                subject=subject,
                quantity="scan",
                case=f"{scan.pictures} picture{'' if scan.pictures == 1 else 's'}",
                passed=not (scan.not_finite or scan.black),
                detail=self._words(scan),
            )

    def _words(self, scan: _Scan) -> str:
        told: list[str] = []
        if scan.not_finite:
            told.append(f"NaN or infinity in {len(scan.not_finite)}, first {scan.not_finite[0]}")
        if scan.black:
            share, case = max(scan.black)
            bound = self._bounds.black_share
            told.append(f"{share:.2%} of {case} is black where the reference is not (≤ {bound:.2%})")
        return "; ".join(told) or "no NaN, no infinity, nothing black that should not be"

    def _keep(self, check: Check, blurred: PictureArray, expected: PictureArray, given: PictureArray) -> None:
        if check.threshold is None or check.max_difference is None or check.psnr_db is None:
            return
        if len(self.worst) == EXHIBITS and _margin_db(self.worst[-1]) <= _margin_db(check):
            return
        place = _around_worst(expected, given)
        exhibit = Exhibit(
            subject=check.subject,
            case=check.case,
            passed=check.passed is True,
            max_difference=check.max_difference,
            psnr_db=check.psnr_db,
            threshold=check.threshold,
            blurred=blurred[place].copy(),
            expected=expected[place].copy(),
            given=given[place].copy(),
        )
        self.worst = sorted([*self.worst, exhibit], key=_margin_db)[:EXHIBITS]


def _margin_db(compared: Check | Exhibit) -> float:
    """By how much a picture is better than its bound."""
    if compared.threshold is None or compared.psnr_db is None or not compared.psnr_db >= 0:
        return -np.inf
    return compared.psnr_db - compared.threshold.psnr_db


def _around_worst(expected: PictureArray, given: PictureArray) -> tuple[slice, slice]:
    apart = np.abs(given.astype(np.int16) - expected).max(axis=2)
    row, column = np.unravel_index(int(apart.argmax()), apart.shape)
    return _part(int(row), apart.shape[0]), _part(int(column), apart.shape[1])


def _part(centre: int, length: int) -> slice:
    start = max(0, min(centre - EXHIBIT_SIDE_PX // 2, length - EXHIBIT_SIDE_PX))
    return slice(start, start + EXHIBIT_SIDE_PX)
