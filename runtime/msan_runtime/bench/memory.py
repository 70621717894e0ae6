"""Peak memory of a competitor, each in a fresh process, so that none is charged for another."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from msan_runtime.backends.cuda import gpu_problem
from msan_runtime.bench.competitors import BenchError, Setup, opener_named
from msan_runtime.bundle import open_bundle
from msan_runtime.machine import peak_rss_bytes

__all__ = ["PeakMemory", "main", "measured_memory"]


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The most that a process held which opened a competitor and ran it twice.

    Attributes:
        rss_bytes: of main memory, the libraries' own included; ``None`` where the system does not tell.
        device_bytes: of a GPU's memory, as CUDA tells it after the runs; ``None`` without a GPU.
    """

    rss_bytes: int | None
    device_bytes: int | None


def measured_memory(name: str, setup: Setup, height: int, width: int) -> PeakMemory:
    """Run the competitor called ``name`` on a picture of height×width pixels in a process of its own.

    Raises:
        BenchError: if that process fails; with its last words.
    """
    request = {
        "name": name,
        "bundle": str(setup.bundle.folder),
        "threads": setup.threads,
        "checkpoint": None if setup.checkpoint is None else str(setup.checkpoint),
        "size": [height, width],
    }
    command = [sys.executable, "-m", "msan_runtime.bench.memory", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchError(f"the memory of {name} at {height}×{width} could not be measured: {words}")
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """What the fresh process does: a request as JSON in its argument, the figures as JSON on its output."""
    request: dict[str, Any] = json.loads(sys.argv[1])
    checkpoint = request["checkpoint"]
    setup = Setup(
        bundle=open_bundle(request["bundle"]),
        threads=request["threads"],
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )
    picture = np.random.default_rng(0).integers(0, 256, (*request["size"], 3), np.uint8)
    before = _free_device_bytes()
    with opener_named(request["name"])(setup) as entrant:
        for _ in range(2):
            entrant.run(picture)
        after = _free_device_bytes()
    device = None if before is None or after is None else before - after
    sys.stdout.write(json.dumps({"rss_bytes": peak_rss_bytes(), "device_bytes": device}) + "\n")


def _free_device_bytes() -> int | None:
    """Free memory of the first GPU; ``None`` without one."""
    if gpu_problem() is not None:
        return None
    status, free, _ = import_module("cuda.bindings.runtime").cudaMemGetInfo()
    return int(free) if int(status) == 0 else None


if __name__ == "__main__":
    main()
