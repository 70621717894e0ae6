"""Things on disk that can be made again: each in one file that carries its own SHA-256.

A file is a line of JSON (format, what it is, SHA-256 of the rest) and then the data. One that is damaged is thrown
away with a word, and never given to anybody.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msan_runtime.atomic import write_bytes

__all__ = ["Kept", "keep", "kept_in", "recall", "trim"]

FORMAT = 1
HEADER_BYTES = 1 << 16
"""The header is one line, and no longer than this."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file of the store.

    Attributes:
        about: what it is, as :func:`keep` was told.
        size_bytes: of the file.
        used: when it was last written or recalled, seconds since the epoch.
    """

    path: Path
    about: Mapping[str, str]
    size_bytes: int
    used: float


def keep(path: Path, data: bytes, about: Mapping[str, str]) -> bool:
    """Write ``data`` at ``path``, atomically; gives whether it could be written. If not, that is a warning."""
    header = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), "about": dict(about)}
    try:
        # Engines and kernels are executable content: nobody else may put some here.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_bytes(path, json.dumps(header, ensure_ascii=False).encode() + b"\n" + data)
    except OSError as error:
        logger.warning("%s was not kept for the next time: %s", path, error.strerror or error)
        return False
    return True


def recall(path: Path) -> bytes | None:
    """The data kept at ``path``; ``None`` if there is none, or none that can be trusted, which is thrown away."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error.strerror or error)
        return None
    line, _, data = content.partition(b"\n")
    header = _header(line)
    if header is None or header.get("sha256") != hashlib.sha256(data).hexdigest():
        logger.warning("%s is damaged and was thrown away: it is made again", path)
        with suppress(OSError):
            path.unlink()
        return None
    with suppress(OSError):
        os.utime(path)
    return data


def kept_in(folder: Path) -> list[Kept]:
    """Every file of the store in ``folder``, last used first; what is not of this format is left out."""
    found: list[Kept] = []
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(OSError):
            if (header := _header_of(path)) is not None:
                state = path.stat()
                about = {str(key): str(value) for key, value in header["about"].items()}
                found.append(Kept(path=path, about=about, size_bytes=state.st_size, used=state.st_mtime))
    return sorted(found, key=lambda kept: kept.used, reverse=True)


def trim(folder: Path, limit_bytes: int) -> list[Kept]:
    """Remove what was used longest ago until at most ``limit_bytes`` are left; gives what was removed."""
    removed: list[Kept] = []
    total = 0
    for kept in kept_in(folder):
        total += kept.size_bytes
        if total > limit_bytes:
            with suppress(OSError):
                kept.path.unlink()
                removed.append(kept)
    return removed


def _header_of(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return _header(file.readline(HEADER_BYTES).removesuffix(b"\n"))


def _header(line: bytes) -> dict[str, Any] | None:
    """The header in ``line``; ``None`` if it is none."""
    if len(line) > HEADER_BYTES:
        return None
    try:
        header: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(header, dict) and header.get("format") == FORMAT and isinstance(header.get("about"), dict)
    return header if known else None
