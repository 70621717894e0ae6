"""Time of ``Deblurrer.deblur`` on the CPU beside the bare session, and of the FP16 graph beside the FP32 one.

All variants run interleaved in one process, so that their ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from machine import describe_machine

from msan_runtime import Deblurrer
from msan_runtime.bundle import Bundle
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME

__all__ = ["main"]


def main() -> None:
    """Print and optionally write the median times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="msan-s")
    parser.add_argument("--size", default="360x640", help="HEIGHTxWIDTH, multiples of 8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.size.split("x"))
    result = measure(arguments.bundle, height, width, arguments.rounds)
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text)


def measure(bundle: str, height: int, width: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of each variant over ``rounds`` interleaved runs, and medians of paired ratios."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with Deblurrer.load(bundle, "ort-cpu") as deblurrer:
        variants: dict[str, Callable[[], object]] = {
            "bare_fp32": _bare(deblurrer.bundle, "fp32", picture),
            "bare_fp16": _bare(deblurrer.bundle, "fp16", picture),
            "deblurrer": lambda: deblurrer.deblur(picture),
        }
        times_ms = _interleaved(variants, rounds)
    return {
        "what": f"{bundle}, {height}×{width}, one picture, medians of {rounds} interleaved runs",
        "milliseconds": {name: round(statistics.median(times), 1) for name, times in times_ms.items()},
        "deblurrer_over_bare_fp32": _ratio(times_ms["deblurrer"], times_ms["bare_fp32"]),
        "bare_fp16_over_bare_fp32": _ratio(times_ms["bare_fp16"], times_ms["bare_fp32"]),
        "machine": describe_machine(("msan", "numpy", "onnxruntime")),
    }


def _bare(bundle: Bundle, precision: str, picture: np.ndarray[Any, Any]) -> Callable[[], object]:
    """One run of the bundle's graph with nothing around it."""
    entry = bundle.graph(prefer=(precision,))
    if entry is None:
        raise SystemExit(f"the bundle has no {precision} graph")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(bundle.read(entry.path), options, providers=["CPUExecutionProvider"])
    tiles = picture[None]
    return lambda: session.run([OUTPUT_NAME], {INPUT_NAME: tiles})


def _interleaved(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round, after two rounds of warming up."""
    times_ms: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 2):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if index >= 2:
                times_ms[name].append(1000 * (time.perf_counter() - started))
    return times_ms


def _ratio(times_ms: list[float], base_ms: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times_ms, base_ms, strict=True)), 3)


if __name__ == "__main__":
    main()
