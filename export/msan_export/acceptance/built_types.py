"""Types as built: what every heavy layer of a graph computes in, and of the network that an engine was built from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import onnx

from msan_calib.network import CalibrationError
from msan_export.acceptance.verdict import Check
from msan_export.artifact import Precision, claims_of
from msan_export.engine import check_types
from msan_export.inspection import onnx_layers
from msan_runtime.engines.building import Flavour, count_types, parse_graph
from msan_runtime.errors import MissingExtraError, MsanError
from msan_runtime.manifest import EngineEntry, GraphEntry

__all__ = ["type_checks"]

Graphs = Sequence[tuple[GraphEntry, onnx.ModelProto]]


def type_checks(graphs: Graphs, engines: Sequence[EngineEntry]) -> Iterator[Check]:
    """Whether each graph has the types that its precision promises, and each engine those of its graph.

    TensorRT networks are strongly typed: the types of the parsed graph are those of the engine.
    """
    for entry, model in graphs:
        try:
            layers = onnx_layers(model)
            check_types(layers, cast(Precision, entry.precision), claims_of(model))
        except (MsanError, CalibrationError) as error:
            yield _check(entry.path, False, str(error))
        else:
            yield _check(entry.path, True, _told(count_types(layers)))
    models = {entry.path: model for entry, model in graphs}
    for engine in engines:
        yield _engine(engine, models.get(engine.graph))


def _engine(entry: EngineEntry, model: onnx.ModelProto | None) -> Check:
    if model is None:
        return _check(entry.path, None, f"its graph {entry.graph} was changed or cannot be read")
    try:
        found = count_types(parse_graph(model.SerializeToString(), cast(Flavour, entry.flavour)).layers)
    except MissingExtraError as error:
        return _check(entry.path, None, str(error))
    except MsanError as error:
        return _check(entry.path, False, str(error))
    if found != dict(entry.layer_types):
        detail = f"the manifest says {_told(entry.layer_types)}; its graph gives {_told(found)}"
        return _check(entry.path, False, detail)
    return _check(entry.path, True, _told(found))


def _check(subject: str, passed: bool | None, detail: str) -> Check:
    return Check(section="types", subject=subject, quantity="types", passed=passed, detail=detail)


def _told(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(types.items()))
