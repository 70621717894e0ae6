"""Whether a graph gives the same picture twice, and the same with its size fixed as with it free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from msan_export.acceptance.figures import levels_apart
from msan_export.acceptance.reference import padded
from msan_export.acceptance.thresholds import Thresholds
from msan_export.acceptance.verdict import Case, Check
from msan_runtime.backends import ort
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME
from msan_runtime.errors import BackendError
from msan_runtime.manifest import GraphEntry

__all__ = ["steadiness_checks", "steady_check"]

Array = npt.NDArray[Any]


def steadiness_checks(
    graphs: Sequence[tuple[GraphEntry, onnx.ModelProto]], case: Case, bounds: Thresholds
) -> Iterator[Check]:
    """Two checks for each graph, on ``case``, in ONNX Runtime on the CPU."""
    picture = padded(case.picture)
    for entry, model in graphs:
        feed = picture if entry.io == "uint8" else picture.astype(np.float32) / 255
        levels = 1.0 if entry.io == "uint8" else 255.0
        try:
            session = ort.open_session(model.SerializeToString(), ort.PROVIDERS["ort-cpu"])
            fixed = ort.open_session(_fixed(model, feed.shape), ort.PROVIDERS["ort-cpu"])
            first, second, static = (_run(which, feed) for which in (session, session, fixed))
        except BackendError as error:
            yield _check(entry.path, "twice", case, passed=False, detail=str(error))
            continue
        yield steady_check(entry.path, "twice", case, levels_apart(first, second, levels), bounds)
        yield steady_check(entry.path, "fixed", case, levels_apart(first, static, levels), bounds)


def steady_check(subject: str, quantity: str, case: Case, levels: float, bounds: Thresholds) -> Check:
    """The line of the verdict for two pictures that are ``levels`` of 255 apart."""
    most = bounds.steady_levels
    detail = "equal to the bit" if levels == 0 else f"apart by up to {levels:.3g} levels of 255 (≤ {most:g})"
    return _check(subject, quantity, case, passed=levels <= most, detail=detail)


def _check(subject: str, quantity: str, case: Case, *, passed: bool, detail: str) -> Check:
    return Check(section="steadiness", subject=subject, quantity=quantity, case=case.name, passed=passed, detail=detail)


def _fixed(model: onnx.ModelProto, shape: tuple[int, ...]) -> bytes:
    """The graph with its input, and so all in it, of one shape."""
    static = onnx.ModelProto()
    static.CopyFrom(model)
    for value in (*static.graph.input, *static.graph.output):
        for dimension, length in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dimension.dim_value = length
    return static.SerializeToString()


def _run(session: Any, feed: Array) -> Array:
    try:
        return session.run([OUTPUT_NAME], {INPUT_NAME: feed})[0]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot run it: {ort.first_line(error)}") from error
