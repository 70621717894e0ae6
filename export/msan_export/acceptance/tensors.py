"""Every sub-network's output and the picture of each graph and engine against the reference, through Polygraphy."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from msan_export._polygraphy import Comparator, IterationResult
from msan_export.acceptance.figures import differences, tensor_differences
from msan_export.acceptance.pictures import Gallery
from msan_export.acceptance.reference import FLOAT_NAME, Reference, padded
from msan_export.acceptance.runners import ComparedRunner, ReferenceRunner
from msan_export.acceptance.thresholds import Threshold, Thresholds
from msan_export.acceptance.verdict import Case, Check
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME
from msan_runtime.errors import MsanError

__all__ = ["tensor_checks"]


def tensor_checks(
    runners: Sequence[ComparedRunner], reference: Reference, case: Case, bounds: Thresholds, gallery: Gallery
) -> Iterator[Check]:
    """``case`` run whole by the reference and by every runner, and every output compared.

    One picture at a time: the tensors of a large one take gigabytes.
    """
    feeds = [{INPUT_NAME: padded(case.picture)}]
    expected = Comparator.run([ReferenceRunner(reference)], data_loader=feeds)
    for runner in runners:
        recorder = _Recorder(runner, case, bounds, gallery)
        try:
            given = Comparator.run([runner], data_loader=feeds)
        except MsanError as error:
            yield Check(
                section="tensors",
                subject=runner.subject,
                quantity="run",
                case=case.name,
                passed=False,
                detail=str(error),
            )
        else:
            Comparator.compare_accuracy([expected, given], compare_func=recorder)
            yield from recorder.checks


class _Recorder:
    """A Polygraphy compare function that holds each output against its threshold and records a Check."""

    def __init__(self, runner: ComparedRunner, case: Case, bounds: Thresholds, gallery: Gallery) -> None:
        self.checks: list[Check] = []
        self._subject, self._precision = runner.subject, runner.precision
        self._case, self._bounds, self._gallery = case, bounds, gallery

    def __call__(self, reference: IterationResult, result: IterationResult) -> OrderedDict[str, bool]:
        for name in result:
            given = np.asarray(result[name])
            # A graph of another network may have more sub-networks than the reference.
            expected = np.asarray(reference[name]) if name in reference else given[:0]
            if name == OUTPUT_NAME:
                self._picture(expected, given)
            else:
                self._tensor(name, expected, given)
        return OrderedDict((check.quantity, bool(check.passed)) for check in self.checks)

    def _picture(self, expected: npt.NDArray[Any], given: npt.NDArray[Any]) -> None:
        threshold = self._bounds.of_pictures(self._precision)
        check = self._judged("uint8", differences(expected, given, threshold.peak), threshold)
        self.checks.append(replace(check, section="pictures"))
        if given.shape == expected.shape:
            height, width = self._case.picture.shape[:2]
            cut = (part[0, :height, :width] for part in (expected, given))
            self._gallery.look(self.checks[-1], self._case.picture, *cut)

    def _tensor(self, name: str, expected: npt.NDArray[Any], given: npt.NDArray[Any]) -> None:
        threshold = self._bounds.of_tensors(self._precision)
        quantity = "float" if name == FLOAT_NAME else name
        self.checks.append(self._judged(quantity, tensor_differences(expected, given), threshold))
        if name == FLOAT_NAME and not np.isfinite(given).all():
            self._gallery.note_not_finite(self._subject, self._case.name)

    def _judged(self, quantity: str, found: tuple[float, float], threshold: Threshold) -> Check:
        worst, psnr_db = found
        return Check(
            section="tensors",
            subject=self._subject,
            quantity=quantity,
            case=self._case.name,
            passed=threshold.allows(worst, psnr_db),
            max_difference=worst,
            psnr_db=psnr_db,
            threshold=threshold,
            detail="" if math.isfinite(worst) else "holds NaN or infinity, or is not of the reference's shape",
        )
