"""One backend tried in this process: opened, given the self-test, timed. Run as ``python -m``, it prints JSON.

A library that crashes takes its process with it: :mod:`msan_runtime.doctor.trial` starts one for each backend.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from msan_runtime.backends.base import Backend
from msan_runtime.backends.ort import PROVIDERS
from msan_runtime.bundle import Bundle, open_bundle
from msan_runtime.errors import MsanError
from msan_runtime.select import select_backend
from msan_runtime.self_test import run_self_test

__all__ = ["probe"]

SIDE_PX = 256
"""Of the tile that is timed."""
RUNS = 3
MARK = "msan-probe:"
"""Before the JSON: libraries print what they like."""


def probe(bundle_name: str, backend_name: str) -> dict[str, Any]:
    """Try a backend; gives ``works``, ``problem``, ``device``, ``provider``, ``checked`` and ``tile_ms``."""
    result: dict[str, Any] = {"works": False, "problem": "", "device": "", "provider": "", "checked": False}
    try:
        bundle = open_bundle(bundle_name)
        with select_backend(bundle, backend_name, rebuild=False, self_test=False).backend as backend:
            result |= {"device": backend.device, "provider": PROVIDERS.get(backend.name, ""), **_tried(backend, bundle)}
    except MsanError as error:
        result["problem"] = str(error).removeprefix(f"backend {backend_name}: ")
    return result


def _tried(backend: Backend, bundle: Bundle) -> dict[str, Any]:
    test = bundle.manifest.self_test
    checked = test is not None and run_self_test(backend, bundle, test)
    return {"works": True, "checked": checked, "tile_ms": _tile_ms(backend)}


def _tile_ms(backend: Backend) -> float:
    """The best of some runs, after one that warms up."""
    largest = backend.limits.largest or (SIDE_PX, SIDE_PX)
    height, width = min(SIDE_PX, largest[0]), min(SIDE_PX, largest[1])
    tile = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    backend.infer(tile)
    return min(_run_ms(backend, tile) for _ in range(RUNS))


def _run_ms(backend: Backend, tile: np.ndarray) -> float:
    started = time.perf_counter()
    backend.infer(tile)
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    sys.stdout.write(f"\n{MARK}{json.dumps(probe(sys.argv[1], sys.argv[2]))}\n")
