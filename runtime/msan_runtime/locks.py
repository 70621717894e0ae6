"""Locks on open files that end with their process, however that ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["taking_turns", "try_lock"]

LOCKED_BYTE = 1 << 30
"""Windows locks bytes and keeps others from reading them: one that no file of ours reaches."""

if sys.platform == "win32":
    import msvcrt

    def try_lock(handle: int) -> bool:
        """Lock the open file; ``False`` if somebody else holds it. Closing the file unlocks it."""
        position = os.lseek(handle, 0, os.SEEK_CUR)
        os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(handle, position, os.SEEK_SET)
        return True

else:
    import fcntl

    def try_lock(handle: int) -> bool:
        """Lock the open file; ``False`` if somebody else holds it. Closing the file unlocks it.

        Raises:
            OSError: if the file system has no locks.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def taking_turns(path: Path, *, poll_s: float = 0.05) -> Generator[bool]:
    """Hold the lock at ``path``, a file that is made if need be, after waiting for whoever holds it.

    Gives ``False``, at once, where there is no lock to be had: a folder that cannot be written, or a file system
    without locks. The file stays: removing it would give two processes a lock each.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        yield False
        return
    try:
        yield _locked(handle, poll_s)
    finally:
        os.close(handle)


def _locked(handle: int, poll_s: float) -> bool:
    try:
        while not try_lock(handle):
            time.sleep(poll_s)
    except OSError:
        return False
    return True
