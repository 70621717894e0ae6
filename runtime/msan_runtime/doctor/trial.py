"""Every backend tried in a process of its own, so that one that crashes or hangs is a line of the report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from msan_runtime.doctor.probe import MARK
from msan_runtime.select import BACKENDS

__all__ = ["PATIENCE_S", "Trial", "try_backend", "try_backends"]

PATIENCE_S = 120.0
"""How long one backend may take to start, compile and run its tiles."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of one backend.

    Attributes:
        backend: its name.
        works: whether it started and gave the right picture.
        problem: why not, in words.
        device: in words.
        provider: of ONNX Runtime, the one really used.
        checked: whether its picture was compared with the bundle's self-test.
        tile_ms: of one tile of 256×256 px, the best of three.
    """

    backend: str
    works: bool
    problem: str = ""
    device: str = ""
    provider: str = ""
    checked: bool = False
    tile_ms: float | None = None


def try_backends(bundle: str, *, say: Callable[[str], None] | None = None) -> tuple[Trial, ...]:
    """Try all backends, one after the other; ``say`` is told the name of each before."""
    trials: list[Trial] = []
    for name in BACKENDS:
        if say is not None:
            say(name)
        trials.append(try_backend(bundle, name))
    return tuple(trials)


def try_backend(bundle: str, name: str, *, patience_s: float = PATIENCE_S) -> Trial:
    """Try one backend. Never raises for what the backend does."""
    command = [sys.executable, "-m", "msan_runtime.doctor.probe", bundle, name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience_s, check=False)
    except subprocess.TimeoutExpired:
        return Trial(backend=name, works=False, problem=f"it did not answer within {patience_s:g} s")
    lines = done.stdout.decode(errors="replace").splitlines()
    told = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if not told:
        return Trial(backend=name, works=False, problem=_end(done))
    return Trial(backend=name, **json.loads(told[-1]))


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    """How a process ended that gave no answer."""
    if done.returncode < 0:
        return f"it crashed (signal {-done.returncode})"
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"it ended with exit code {done.returncode}: {' '.join(last)[:200]}"
