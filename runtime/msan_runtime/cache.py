"""Where msan keeps what it can compute again: one folder for each user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """The user's cache folder of msan. It need not exist.

    ``XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``LOCALAPPDATA`` on Windows, ``~/Library/Caches`` on macOS.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "msan"
