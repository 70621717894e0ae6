"""The head of a cluster: whether it answers, before a run and during it."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["reach", "watched"]

ANSWERS_WITHIN_S = 10.0
LOOKED_AT_EVERY_S = 5.0
SILENT_TIMES = 3
"""After so many looks in vain it is told, well within the minute after which Ray ends the process without a word."""

logger = logging.getLogger(__name__)


def reach(head: tuple[str, int]) -> None:
    """Connect to (host, port) and hang up.

    Raises:
        OSError: if nobody answers.
    """
    socket.create_connection(head, ANSWERS_WITHIN_S).close()


@contextmanager
def watched(head: tuple[str, int], *, every_s: float = LOOKED_AT_EVERY_S) -> Generator[None]:
    """Say it once if the head no longer answers while the block runs."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(head, over, every_s), name="msan-head", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _watch(head: tuple[str, int], over: threading.Event, every_s: float) -> None:
    silent = 0
    while silent < SILENT_TIMES:
        if over.wait(every_s):
            return
        try:
            reach(head)
            silent = 0
        except OSError:
            silent += 1
    logger.error(
        "the head of the cluster, %s:%d, no longer answers: Ray will end this run. "
        "What is done is kept: give the command again when the cluster is back",
        *head,
    )
