"""Graphs run node by node, every result in its own type: what a type cannot hold, and where it begins.

ONNX Runtime computes FP16 graphs in FP32 on a CPU and takes away the rounding between some operators, so that a tensor
that overflows on a GPU can look right (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx

from msan_calib.network import CalibrationError
from msan_calib.walk import Walker
from msan_export.acceptance.cases import sized
from msan_export.acceptance.departure import first_departure
from msan_export.acceptance.figures import differences
from msan_export.acceptance.reference import Reference
from msan_export.acceptance.thresholds import Threshold, Thresholds
from msan_export.acceptance.verdict import Case, Check
from msan_export.onnx import onnx_from_checkpoint
from msan_export.source import Source
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray
from msan_runtime.manifest import GraphEntry

__all__ = ["SIDE_PX", "nodewise_checks"]

SIDE_PX = 64
"""Height and width of the part of each picture that is run so: nodes alone are slow."""

Graphs = Sequence[tuple[GraphEntry, onnx.ModelProto]]


def nodewise_checks(
    checkpoint: Source,
    graphs: Graphs,
    reference: Reference,
    cases: Sequence[Case],
    bounds: Thresholds,
    *,
    off: Collection[str],
) -> Iterator[Check]:
    """A check for each graph below FP32, and for each graph that is off the first node where it leaves the network.

    Args:
        checkpoint: what the graphs were made from.
        graphs: entries and models.
        reference: of the checkpoint, in PyTorch.
        cases: pictures; the middle of each is run.
        bounds: on pictures, and on nodes.
        off: paths of graphs that failed another check.
    """
    pictures = [sized(case.picture, SIDE_PX, SIDE_PX)[None] for case in cases]
    references = [reference.outputs(picture)[OUTPUT_NAME] for picture in pictures]
    good = {entry.io: model for entry, model in graphs if entry.precision == "fp32" and entry.path not in off}
    for entry, model in graphs:
        wrong = entry.path in off
        if entry.precision != "fp32" and entry.io == "uint8":
            check = _typed(entry, model, pictures, references, bounds.of_pictures(entry.precision))
            wrong = wrong or check.passed is False
            yield check
        if wrong:
            if entry.io not in good:
                good[entry.io] = onnx_from_checkpoint(checkpoint, io=entry.io, attention=reference.attention)
            yield _where(good[entry.io], entry, model, pictures, bounds.first_node[entry.precision])


def _typed(
    entry: GraphEntry,
    model: onnx.ModelProto,
    pictures: Sequence[PictureArray],
    references: Sequence[PictureArray],
    threshold: Threshold,
) -> Check:
    """The worst of all pictures."""
    try:
        walker = Walker(model)
        given = [walker.run({INPUT_NAME: picture})[OUTPUT_NAME] for picture in pictures]
    except CalibrationError as error:
        return Check(section="pictures", subject=entry.path, quantity="typed", passed=False, detail=str(error))
    pairs = [differences(expected, one, 255.0) for expected, one in zip(references, given, strict=True)]
    worst, psnr_db = max(worst for worst, _ in pairs), min(psnr for _, psnr in pairs)
    passed = threshold.allows(worst, psnr_db)
    return Check(
        section="pictures",
        subject=entry.path,
        quantity="typed",
        case=f"{len(pictures)} × {SIDE_PX}×{SIDE_PX}",
        passed=passed,
        max_difference=worst,
        psnr_db=psnr_db,
        threshold=threshold,
        detail="" if passed else "run node by node in the graph's own types, as a GPU does, it gives another picture",
    )


def _where(
    reference: onnx.ModelProto,
    entry: GraphEntry,
    model: onnx.ModelProto,
    pictures: Sequence[PictureArray],
    tolerance: float,
) -> Check:
    """The first node that leaves ``reference``, on the first picture that shows one."""
    detail = "no single node is off on these pictures"
    try:
        for picture in pictures:
            feed = picture if entry.io == "uint8" else picture.astype(np.float32) / 255
            found = first_departure(model, reference, {INPUT_NAME: feed}, tolerance=tolerance)
            if found is not None:
                detail = str(found)
                break
    except CalibrationError as error:
        detail = str(error)
    return Check(section="tensors", subject=entry.path, quantity="first node", passed=False, detail=detail)
