"""The first node that a backend computes wrongly, though its graph is right: found by halving.

A graph that ends at a tensor is given to the backend's own library, which fuses and orders nodes as it likes; what it
gives is held against the same tensor computed node by node.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from msan_calib.walk import Step, Walker
from msan_export.acceptance.departure import Departure, off_words
from msan_runtime.backends import ort
from msan_runtime.backends.openvino import PRECISION_HINTS
from msan_runtime.errors import BackendError

__all__ = ["LIBRARIES", "Library", "bisected_departure"]

Feed = Mapping[str, npt.NDArray[Any]]

Library = Callable[[bytes, Feed], npt.NDArray[Any]]
"""Gives the one output of the ONNX graph in the bytes."""


def bisected_departure(library: Library, model: onnx.ModelProto, feed: Feed, *, tolerance: float) -> Departure | None:
    """The first node of ``model`` from which on ``library`` leaves what its nodes alone give; ``None`` if none does.

    Args:
        library: what runs graphs.
        model: a graph that is right node by node.
        feed: its inputs.
        tolerance: RMS of the error over RMS of the tensor.

    Raises:
        CalibrationError: if a node cannot be run alone.
        BackendError: if the library cannot run a part of the graph.
    """
    places: list[tuple[onnx.NodeProto, str, npt.NDArray[Any]]] = []

    def remember(step: Step) -> None:
        places.extend((step.node, name, values) for name, values in step.float_outputs().items())

    Walker(model).run(feed, remember)

    def words(place: tuple[onnx.NodeProto, str, npt.NDArray[Any]]) -> str | None:
        _, name, expected = place
        given = library(_ending_at(model, name, expected), feed)
        return off_words(given.astype(np.float32), expected.astype(np.float32), tolerance)

    index = bisect.bisect_left(places, True, key=lambda place: words(place) is not None)
    if index == len(places):
        return None
    node, name, _ = places[index]
    return Departure(node=node.name or name, operator=node.op_type, words=words(places[index]) or "")


def _ending_at(model: onnx.ModelProto, name: str, values: npt.NDArray[Any]) -> bytes:
    """The graph with ``name`` for its only output. Libraries leave out what it does not need."""
    ending = onnx.ModelProto()
    ending.CopyFrom(model)
    del ending.graph.output[:]
    kind = TensorProto.FLOAT16 if values.dtype == np.float16 else TensorProto.FLOAT
    ending.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return ending.SerializeToString()


def _onnxruntime(provider: str, graph: bytes, feed: Feed) -> npt.NDArray[Any]:
    session: Any = ort.open_session(graph, provider)
    try:
        return session.run(None, dict(feed))[0]
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BackendError(f"ONNX Runtime cannot run a part of the graph: {ort.first_line(error)}") from error


def _openvino(hint: str, graph: bytes, feed: Feed) -> npt.NDArray[Any]:
    import openvino

    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(graph, b""), "CPU", {"INFERENCE_PRECISION_HINT": hint})
        results: Any = compiled(dict(feed))
    except RuntimeError as error:
        raise BackendError(f"OpenVINO cannot run a part of the graph: {error}") from error
    return np.asarray(results[0])


LIBRARIES: Mapping[str, Library] = {
    **{name: partial(_onnxruntime, provider) for name, provider in ort.PROVIDERS.items()},
    **{name: partial(_openvino, hint) for name, hint in PRECISION_HINTS.items()},
}
"""By the name of the backend. Engines show no tensor but the picture."""
