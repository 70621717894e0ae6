"""Time and memory of one bundle over the size of the picture, each size in a process of its own, on the CPU.

Growth is the peak resident size after the picture less the resident size before it (bundle loaded, one small picture
deblurred, no picture held); input and output are among it. ``beyond_pictures`` is growth less these two: the working
set of one tile, and what else a picture's size costs. Processor time tells more than time where other programs run.
Sizes have the shape 3:4.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from msan_runtime import Deblurrer

__all__ = ["main"]

MIB = 2**20
MEGAPIXELS = (1, 4, 12, 24, 100)


def main() -> None:
    """Print and optionally write the figures of every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="msan-s")
    parser.add_argument("--backend", default="ort-cpu")
    parser.add_argument("--megapixels", type=float, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--memory-bytes", type=int, help="for one run; the runtime's default if left out")
    parser.add_argument("--rounds", type=int, default=1, help="of all sizes; the fastest counts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        measured = measure(arguments.bundle, arguments.backend, arguments.one, arguments.memory_bytes)
        print(json.dumps(measured))  # noqa: T201 - read by the process that started this one
        return
    result = _result(arguments)
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text)


def measure(bundle: str, backend: str, megapixels: float, memory_bytes: int | None) -> dict[str, Any]:
    """Deblur one random picture in this process."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = round(megapixels * 1e6 / height)
    with Deblurrer.load(bundle, backend, memory_bytes=memory_bytes) as deblurrer:
        deblurrer.deblur(np.zeros((64, 64, 3), np.uint8))
        before_kib = _status_kib("VmRSS")
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        started, used = time.perf_counter(), time.process_time()
        deblurrer.deblur(picture)
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - used
        grown = (_status_kib("VmHWM") - before_kib) * 1024
    return {
        "megapixels": megapixels,
        "height_px": height,
        "width_px": width,
        "seconds": round(seconds, 3),
        "seconds_per_megapixel": round(seconds / (height * width / 1e6), 3),
        "processor_seconds_per_megapixel": round(processor_seconds / (height * width / 1e6), 3),
        "growth_mib": round(grown / MIB, 1),
        "pictures_mib": round(2 * picture.nbytes / MIB, 1),
        "beyond_pictures_mib": round((grown - 2 * picture.nbytes) / MIB, 1),
    }


def _result(arguments: argparse.Namespace) -> dict[str, Any]:
    rounds = [[_in_fresh_process(arguments, n) for n in arguments.megapixels] for _ in range(arguments.rounds)]
    sizes = [min(same, key=lambda one: one["seconds"]) for same in zip(*rounds, strict=True)]
    beyond = [one["beyond_pictures_mib"] for one in sizes]
    return {
        "what": f"{arguments.bundle} on {arguments.backend}, one random picture of each size, fresh processes",
        "memory_bytes": arguments.memory_bytes,
        "sizes": sizes,
        "slowest_over_fastest_per_megapixel": _spread(sizes, "seconds_per_megapixel"),
        "slowest_over_fastest_by_processor_time": _spread(sizes, "processor_seconds_per_megapixel"),
        "largest_less_smallest_beyond_pictures_mib": round(max(beyond) - min(beyond), 1),
        "machine": describe_machine(("msan", "numpy", "onnxruntime")),
    }


def _spread(sizes: list[dict[str, Any]], name: str) -> float:
    values = [one[name] for one in sizes]
    return round(max(values) / min(values), 3)


def _in_fresh_process(arguments: argparse.Namespace, megapixels: float) -> dict[str, Any]:
    memory = [] if arguments.memory_bytes is None else ["--memory-bytes", str(arguments.memory_bytes)]
    command = [sys.executable, __file__, "--one", str(megapixels), "--bundle", arguments.bundle]
    done = subprocess.run(
        [*command, "--backend", arguments.backend, *memory], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def _status_kib(name: str) -> int:
    """A line of Linux's /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
