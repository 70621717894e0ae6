"""Attention over the whole picture beside windows of it: quality, time and memory.

Quality: PSNR and SSIM of whole pictures in PyTorch, without tiles. Time: the FP32 graph in ONNX Runtime on the CPU,
all forms interleaved, so that their ratios hold on a noisy machine. Memory: by how much one picture raises the largest
resident size of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from msan.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, network_from_checkpoint
from msan.evaluation.methods import deblur_with_network
from msan.evaluation.metrics import psnr_db
from msan.evaluation.sets import EvaluationSet, find_evaluation_sets
from msan.evaluation.ssim import ssim_matlab3d
from msan.network import MsanNetwork
from msan_export.onnx import export_onnx
from msan_runtime.attention import Attention
from msan_runtime.backends import ort
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME
from msan_runtime.machine import peak_rss_bytes

__all__ = ["main"]

FORMS = ("global", "window:128", "window:192", "window:256", "window:384")
SIZES = ("360x640", "720x1280", "1080x1920")


def main() -> None:
    """Print and optionally write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="file or shipped name")
    parser.add_argument("data", type=Path, nargs="*", help="folders that msan evaluate takes")
    parser.add_argument("--forms", nargs="+", default=FORMS, help="global, window:SIZE")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="HEIGHTxWIDTH, multiples of 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="only so many pictures of each set")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(find_checkpoint(arguments.checkpoint))
    sizes = [tuple(int(side) for side in size.split("x")) for size in arguments.sizes]
    result = {
        "what": f"{arguments.checkpoint}: attention over the whole picture and over windows",
        "checkpoint_sha256": checkpoint.sha256,
        "quality": quality(checkpoint, arguments.data, arguments.forms, arguments.limit),
        "onnxruntime_cpu": costs(checkpoint, arguments.forms, sizes, arguments.rounds),
        "machine": describe_machine(("msan", "numpy", "onnxruntime", "torch")),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text)


def quality(
    checkpoint: Checkpoint, data: Sequence[Path], forms: Sequence[str], limit: int | None
) -> list[dict[str, Any]]:
    """Mean PSNR and SSIM (``matlab3d``) of each data set, blurred and with each form, and each picture's PSNR."""
    networks = {form: network_from_checkpoint(checkpoint, Attention.parse(form)) for form in forms}
    return [_quality_on(chosen, networks) for chosen in find_evaluation_sets(data, limit=limit)]


def _quality_on(chosen: EvaluationSet, networks: dict[str, MsanNetwork]) -> dict[str, Any]:
    scores: dict[str, list[tuple[float, float]]] = {form: [] for form in ("blurred", *networks)}
    for pair in chosen.pairs():
        pictures = {form: deblur_with_network(network, pair.blurred) for form, network in networks.items()}
        for form, picture in {"blurred": pair.blurred, **pictures}.items():
            scores[form].append((psnr_db(picture, pair.sharp), ssim_matlab3d(picture, pair.sharp)))
        last = ", ".join(f"{form} {figures[-1][0]:.3f}" for form, figures in scores.items())
        _progress(f"{chosen.name}, {pair.name}: {last} dB")
    forms = {form: _means(figures) for form, figures in scores.items()}
    return {"data": chosen.name, "pictures": len(chosen.files), **forms}


def _means(figures: list[tuple[float, float]]) -> dict[str, Any]:
    psnrs_db, ssims = zip(*figures, strict=True)
    return {
        "psnr_db": round(statistics.fmean(psnrs_db), 4),
        "ssim_matlab3d": round(statistics.fmean(ssims), 5),
        "pictures_psnr_db": [round(one, 3) for one in psnrs_db],
    }


def costs(
    checkpoint: Checkpoint, forms: Sequence[str], sizes: Sequence[tuple[int, ...]], rounds: int
) -> list[dict[str, Any]]:
    """Median milliseconds of each form at each size, medians of paired ratios to the first form, and memory."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for form in forms:
            _progress(f"exporting {form}")
            path = Path(folder) / f"{form.replace(':', '-')}.onnx"
            files[form] = export_onnx(checkpoint, path, precision="fp32", attention=Attention.parse(form)).path
        return [_costs_at(files, size, rounds) for size in sizes]


def _costs_at(files: dict[str, Path], size: tuple[int, ...], rounds: int) -> dict[str, Any]:
    _progress(f"{size[0]}×{size[1]}")
    times_ms = _interleaved(files, size, rounds)
    first = next(iter(files))
    # Each in a process of its own: the largest resident size never shrinks within one.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        growths = {form: pool.apply(_growth_mib, (path, size)) for form, path in files.items()}
    return {
        "size": f"{size[0]}×{size[1]}",
        "milliseconds": {form: round(statistics.median(times)) for form, times in times_ms.items()},
        f"over_{first}": {form: _ratio(times, times_ms[first]) for form, times in times_ms.items()},
        "memory_mib": growths,
    }


def _interleaved(files: dict[str, Path], size: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, after one round of warming up."""
    picture = _picture(size)
    sessions = {form: ort.open_session(path.read_bytes(), ort.PROVIDERS["ort-cpu"]) for form, path in files.items()}
    times_ms: dict[str, list[float]] = {form: [] for form in files}
    for index in range(rounds + 1):
        for form, session in sessions.items():
            started = time.perf_counter()
            session.run([OUTPUT_NAME], {INPUT_NAME: picture})
            if index:
                times_ms[form].append(1000 * (time.perf_counter() - started))
    return times_ms


def _growth_mib(path: Path, size: tuple[int, ...]) -> int:
    """By how much a session and one run raise the largest resident size of this process."""
    before_bytes = peak_rss_bytes() or 0
    session = ort.open_session(path.read_bytes(), ort.PROVIDERS["ort-cpu"])
    session.run([OUTPUT_NAME], {INPUT_NAME: _picture(size)})
    return ((peak_rss_bytes() or 0) - before_bytes) // 2**20


def _picture(size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)


def _ratio(times_ms: list[float], base_ms: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times_ms, base_ms, strict=True)), 3)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is a command


if __name__ == "__main__":
    main()
