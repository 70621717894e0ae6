"""Cores for a worker that was given some of a machine's: Ray counts them, and binds nobody to them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from msan_runtime.locks import try_lock

__all__ = ["bind_to_cores"]


def bind_to_cores(count: int) -> list[int]:
    """Bind this process, and the threads that it starts from now on, to ``count`` cores that no other worker has.

    Without it each worker's network would take all cores, and several workers would get in each other's way. A
    core is taken by a lock that ends with the process. Where cores are short, or cannot be locked or bound to,
    the process keeps what it has.

    Returns:
        The cores; empty if the process was not bound.
    """
    if sys.platform != "linux":
        return []
    usable = sorted(os.sched_getaffinity(0))
    if count >= len(usable):
        return []
    folder = Path(tempfile.gettempdir()) / f"msan-cores-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        taken = [core for core in usable if len(_held) < count and _take(folder / str(core))]
    except OSError:
        return []
    if len(taken) < count:
        while _held:
            os.close(_held.pop())
        return []
    os.sched_setaffinity(0, taken)
    return taken


_held: list[int] = []
"""Handles of the locks: they stay open until the process ends."""


def _take(path: Path) -> bool:
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    if try_lock(handle):
        _held.append(handle)
        return True
    os.close(handle)
    return False
