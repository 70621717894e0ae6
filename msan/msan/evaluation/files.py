"""Scores as files: JSON of a whole run, CSV picture by picture."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msan.evaluation.evaluate import Evaluation, Metric, PictureScore
from msan.evaluation.methods import Method
from msan.evaluation.sets import BlurredPictures
from msan_runtime.atomic import write_text
from msan_runtime.strictjson import strict_json

__all__ = ["CSV_COLUMNS", "save_csv", "save_json"]

METRICS: Mapping[Metric, str] = {
    "psnr_db": "PSNR of uint8 RGB over the whole picture, in dB",
    "ssim_matlab3d": "SSIM as MATLAB's ssim of the H×W×3 array: 11×11×11 Gaussian windows of sigma 1.5",
    "ssim_skimage": "SSIM as scikit-image's structural_similarity(channel_axis=2): uniform 7×7 windows",
    "aligned_psnr_db": "PSNR after RealBlur's published alignment (intensity, ECC homography, mask), in dB",
    "aligned_ssim": "SSIM (Gaussian windows of sigma 1.5) after the same alignment",
}
SHORT: Mapping[Metric, str] = {"psnr_db": "db", "aligned_psnr_db": "aligned_db"}
"""Metrics whose key in the files is not their name: ``blurred_db``, ``deblurred_aligned_db``."""

VERSIONED = {
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt": "tensorrt",
    "numpy": "numpy",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "cv2": "opencv",
    "PIL": "pillow",
}
"""Packages that figures may depend on, by module; those that were loaded are named in the file."""

CSV_COLUMNS = (
    "set",
    "name",
    "height_px",
    "width_px",
    "length_px",
    *(f"{when}_{SHORT.get(metric, metric)}" for metric in METRICS for when in ("blurred", "deblurred")),
    "gain_db",
    "time_ms",
)


def save_json(path: Path, method: Method, evaluations: Sequence[Evaluation]) -> None:
    """Write a run as strict JSON, atomically; an infinite PSNR becomes ``"inf"``.

    The figures of one data set stand beside the run's own; those of several in ``sets``, an entry each.
    """
    sets = [_set_body(evaluation) for evaluation in evaluations]
    measured = {metric for evaluation in evaluations for metric in evaluation.metrics}
    body = {
        "model": method.source,
        "method": _method_body(method),
        "metrics": {_key("*", metric): words for metric, words in METRICS.items() if metric in measured},
        "versions": {"msan": version("msan")} | _loaded_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(sets[0] if len(sets) == 1 else {"sets": sets}),
    }
    write_text(path, strict_json(body))


def save_csv(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write a line for each picture (``CSV_COLUMNS``; empty where not measured), atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for evaluation in evaluations:
        for one in evaluation.scores:
            writer.writerow({"set": evaluation.measured_set.name} | _picture_body(one))
    write_text(path, text.getvalue())


def _method_body(method: Method) -> dict[str, Any]:
    return {
        "kind": method.kind,
        "sha256": method.sha256,
        "size_bytes": method.size_bytes,
        "backend": method.backend,
        "device": method.device,
        "tile_area_px": method.tile_area_px,
        "attention": method.attention,
    }


def _set_body(evaluation: Evaluation) -> dict[str, Any]:
    chosen = evaluation.measured_set
    body: dict[str, Any] = {
        "data": chosen.name,
        "layout": chosen.layout,
        "split": chosen.split,
        "pictures_found": len(chosen.all_files),
        "limit": chosen.limit,
        "full_test_set": evaluation.reason_not_full is None,
        "pictures": len(evaluation.scores),
        "skipped": [{"name": one.name, "reason": one.reason} for one in evaluation.skipped],
    }
    if isinstance(chosen, BlurredPictures):
        body["blur_set_version"] = chosen.version
    for metric in evaluation.metrics:
        body[_key("blurred", metric)] = evaluation.blurred(metric)
        body[_key("deblurred", metric)] = evaluation.deblurred(metric)
    body |= {"gain_db": evaluation.gain_db, "worse": evaluation.worse}
    if "aligned_psnr_db" in evaluation.metrics:
        body["aligned_gain_db"] = evaluation.quoted_gain_db
    if times := evaluation.times_ms:
        body |= {"time_ms": statistics.median(times), "time_mean_ms": statistics.fmean(times)}
    return body | {"scores": [_picture_body(one) for one in evaluation.scores]}


def _picture_body(one: PictureScore) -> dict[str, Any]:
    """A picture's figures by the names of ``CSV_COLUMNS``; what was not measured is left out."""
    height, width = one.size
    body: dict[str, Any] = {"name": one.name, "height_px": height, "width_px": width}
    if one.length_px is not None:
        body["length_px"] = one.length_px
    for metric in one.blurred:
        body[_key("blurred", metric)] = one.blurred[metric]
        body[_key("deblurred", metric)] = one.deblurred[metric]
    body["gain_db"] = one.gain_db
    if one.time_ms is not None:
        body["time_ms"] = one.time_ms
    return body


def _key(when: str, metric: Metric) -> str:
    return f"{when}_{SHORT.get(metric, metric)}"


def _loaded_versions() -> dict[str, str]:
    return {name: str(sys.modules[module].__version__) for module, name in VERSIONED.items() if module in sys.modules}
