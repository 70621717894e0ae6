"""A calibrated graph written: the ONNX file with what it says of itself, its report, and its plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx

from msan_calib.calibrate import CalibratedGraph, CalibratedPrecision
from msan_calib.network import PictureNetwork
from msan_calib.report import calibration_body, plot_frontier
from msan_runtime.atomic import write_bytes, write_text
from msan_runtime.errors import MissingExtraError
from msan_runtime.strictjson import strict_json

__all__ = ["finished_graph", "half_graph", "write_calibrated"]


def finished_graph(result: CalibratedGraph) -> onnx.ModelProto:
    """The graph, checked, with metadata properties that say what it is.

    ``msan.precision``, ``msan.quantized`` (names of quantised convolutions, JSON), ``msan.islands`` (nodes in FP32 with
    reasons, JSON) and ``msan.samples_sha256``.
    """
    return _told(result.model, result, result.options.precision, result.quantized)


def half_graph(result: CalibratedGraph) -> onnx.ModelProto:
    """The FP16 graph that the result is made of, with the same metadata properties."""
    return _told(result.half.model, result, "fp16", ())


def _told(
    graph: onnx.ModelProto, result: CalibratedGraph, precision: CalibratedPrecision, quantized: Sequence[str]
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    told = {prop.key: prop.value for prop in model.metadata_props}
    told["msan.precision"] = precision
    told["msan.quantized"] = json.dumps(list(quantized))
    told["msan.islands"] = json.dumps({island.node: island.reason for island in result.half.islands})
    told["msan.samples_sha256"] = result.samples.sha256
    onnx.helper.set_model_props(model, dict(sorted(told.items())))
    onnx.checker.check_model(model, full_check=True)
    return model


def write_calibrated(result: CalibratedGraph, network: PictureNetwork, path: Path, *, source: str) -> list[Path]:
    """Write the graph at ``path``, beside it the report and, of INT8 and FP8, the plot; each atomically.

    Returns:
        what was written. Without matplotlib there is no plot.
    """
    report = path.with_name(f"{path.stem}.calibration.json")
    written = [path, report]
    data = finished_graph(result).SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(report, strict_json(calibration_body(result, source=source, source_sha256=network.sha256)))
    if result.choice is not None:
        plot = path.with_name(f"{path.stem}.frontier.png")
        try:
            plot_frontier(result.choice, result.options.budget_db, plot)
            written.append(plot)
        except MissingExtraError:
            pass
    write_bytes(path, data)
    return written
