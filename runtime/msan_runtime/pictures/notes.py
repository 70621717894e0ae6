"""Notes in the log of what a picture loses, each with the name of its file."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

__all__ = ["note", "notes_about"]

logger = logging.getLogger(__name__)

_subject: ContextVar[Path | str] = ContextVar("_subject", default="a picture")
"""Passed beside the calls: what finds a damaged profile has its bytes, and no name for them."""


@contextmanager
def notes_about(subject: Path | str) -> Generator[None]:
    """Give the notes of the block, in this thread, the name of ``subject``."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


def note(message: str, *values: object) -> None:
    """Log ``message``, with ``values`` put into it, as a warning about the file at work."""
    logger.warning(f"%s: {message}", _subject.get(), *values)
