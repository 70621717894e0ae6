"""A lock on an open file that ends with its process, however that ends."""

from __future__ import annotations

import os
import sys

__all__ = ["try_lock"]

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
