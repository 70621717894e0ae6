"""Whether a graph gives the same picture twice, and the same with its size fixed as with it free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from msan_export.thresholds import Thresholds
from msan_export.verdict import Case, Check
from msan_runtime.backends import ort
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, pad_to, round_up
from msan_runtime.errors import BackendError
from msan_runtime.manifest import GraphEntry

__all__ = ["steadiness_checks"]


def steadiness_checks(
    graphs: Sequence[tuple[GraphEntry, onnx.ModelProto]], case: Case, bounds: Thresholds
) -> Iterator[Check]:
    """Two checks for each graph, on ``case``, in ONNX Runtime on the CPU."""
    height, width = (round_up(side) for side in case.picture.shape[:2])
    picture = np.ascontiguousarray(pad_to(case.picture, height, width)[None])
    for entry, model in graphs:
        feed = picture if entry.io == "uint8" else picture.astype(np.float32) / 255
        scale = 1.0 if entry.io == "uint8" else 255.0
        try:
            session = ort.open_session(model.SerializeToString(), ort.PROVIDERS["ort-cpu"])
            fixed = ort.open_session(_fixed(model, feed.shape), ort.PROVIDERS["ort-cpu"])
            first, second, static = (_run(which, feed) for which in (session, session, fixed))
        except BackendError as error:
            yield Check(subject=entry.path, quantity="twice", case=case.name, passed=False, detail=str(error))
            continue
        yield _check(entry, "twice", case, first, second, scale, bounds.steady_levels)
        yield _check(entry, "fixed", case, first, static, scale, bounds.steady_levels)


def _check(
    entry: GraphEntry,
    quantity: str,
    case: Case,
    one: npt.NDArray[Any],
    other: npt.NDArray[Any],
    scale: float,
    most_levels: float,
) -> Check:
    if np.array_equal(one, other):
        return Check(subject=entry.path, quantity=quantity, case=case.name, passed=True, detail="equal to the bit")
    levels = float(np.abs(one.astype(np.float64) - other).max()) * scale
    detail = f"apart by up to {levels:.3g} levels of 255 (≤ {most_levels:g})"
    passed = levels <= most_levels
    return Check(subject=entry.path, quantity=quantity, case=case.name, passed=passed, detail=detail)


def _fixed(model: onnx.ModelProto, shape: tuple[int, ...]) -> bytes:
    """The graph with its input, and so all in it, of one shape."""
    static = onnx.ModelProto()
    static.CopyFrom(model)
    for value in (*static.graph.input, *static.graph.output):
        for dimension, length in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dimension.dim_value = length
    return static.SerializeToString()


def _run(session: Any, feed: npt.NDArray[Any]) -> npt.NDArray[Any]:
    try:
        return session.run([OUTPUT_NAME], {INPUT_NAME: feed})[0]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot run it: {ort.first_line(error)}") from error
