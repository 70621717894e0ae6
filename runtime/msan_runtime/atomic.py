"""Atomic writes: a reader sees the old file or the whole new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from msan_runtime.locks import try_lock

__all__ = ["marked", "remove_abandoned", "replacing", "replacing_folder", "write_bytes", "write_text"]

TEMPORARY_NAME = re.compile(r"\.msan-.*\.[0-9a-f]{16}\.tmp", re.DOTALL)

ABANDONED_SECONDS = 3600.0
"""Age from which a temporary file counts as abandoned where it cannot be locked while it is written, as on Windows."""


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary path beside ``path``; put it in ``path``'s place if the block ends well.

    What was written has reached the disk before the old file goes. On an exception the temporary file
    is removed and ``path`` is as it was. The file gets the permissions that an ordinary new file would
    have. Several threads may write at once.

    Raises:
        OSError: if the folder cannot be written.
    """
    temporary = path.with_name(f".msan-{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        with _held(handle):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Generator[Path]:
    """Give an empty folder beside ``folder``; put it in ``folder``'s place if the block ends well.

    On an exception it is removed and ``folder`` is as it was. What is to be replaced is the caller's to decide.

    Raises:
        OSError: if the folder around it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        stage = outer / "new"
        stage.mkdir()
        yield stage
        if folder.exists():
            folder.rename(outer / "old")
        stage.rename(folder)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


@contextmanager
def marked(folder: Path) -> Generator[Path]:
    """Give a file in ``folder`` that nobody else has, there until the end of the block: who sees it sees the folder.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = folder / f".msan-marker.{secrets.token_hex(8)}.tmp"
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        with _held(handle):
            yield path
    finally:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``; not those being written now."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if (
                TEMPORARY_NAME.fullmatch(entry.name)
                and entry.is_file(follow_symlinks=False)
                and _abandoned(path := Path(entry.path))
            ):
                path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, text.encode())


if sys.platform == "win32":

    @contextmanager
    def _held(handle: int) -> Generator[None]:
        """Close the handle: Windows replaces no file that is open, and lets nobody else write one that is locked."""
        os.close(handle)
        yield

    def _abandoned(path: Path) -> bool:
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        return False

else:

    @contextmanager
    def _held(handle: int) -> Generator[None]:
        """Hold a lock, the sign for others that the file is being written; some file systems have none."""
        try:
            with contextlib.suppress(OSError):
                try_lock(handle)
            yield
        finally:
            os.close(handle)

    def _abandoned(path: Path) -> bool:
        with contextlib.suppress(OSError), path.open("rb+") as file:
            return try_lock(file.fileno())
        return False
