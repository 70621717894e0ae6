"""Who is let in: counts of requests, and of the bytes that they hold."""

from __future__ import annotations

import asyncio
import re
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager

from msan_runtime.serve.options import Limits
from msan_runtime.serve.problems import ClientGoneError, ProblemError

__all__ = ["Admission", "Ticket"]

ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BUSY_S = 5
"""When to ask again where nothing better is known."""


class Ticket:
    """A request that was let in: what it holds and how far it is. Made and changed in the server's thread.

    Attributes:
        id: a UUID, the client's own if it gave one.
        state: ``receiving``, ``waiting``, ``deblurring`` or ``encoding``.
        tiles: how many tiles were taken, and how many there are; written by the thread that deblurs.
        held_bytes: of body and answer.
    """

    def __init__(self, ticket_id: str) -> None:
        self.id = ticket_id
        self.state = "receiving"
        self.tiles = (0, 0)
        self.held_bytes = 0
        self.task = asyncio.current_task()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Have the threads that work for it stop as soon as they ask."""
        self._cancelled.set()

    def check(self) -> None:
        """Refuse to go on for somebody who is gone.

        Raises:
            ClientGoneError: if it was cancelled.
        """
        if self._cancelled.is_set():
            raise ClientGoneError

    def note_tile(self, taken: int, total: int) -> None:
        """Note how far it is, from the thread that deblurs.

        Raises:
            ClientGoneError: if it was cancelled.
        """
        self.check()
        self.tiles = (taken, total)


class Admission:
    """Lets requests in and counts what they hold. Belongs to the server's thread.

    Attributes:
        tickets: of the requests that are in, by their ids.
        draining: whether nobody is let in any more.
        stopped: whether those inside are to end, too.
    """

    def __init__(self, limits: Limits, refuse_full_queue: Callable[[], None]) -> None:
        """Let in as many as ``limits`` allow; ``refuse_full_queue`` raises if the network has too much to do."""
        self.limits = limits
        self.tickets: dict[str, Ticket] = {}
        self.draining = False
        self.stopped = False
        self._refuse_full_queue = refuse_full_queue

    @property
    def held_bytes(self) -> int:
        """Of all bodies and answers."""
        return sum(ticket.held_bytes for ticket in self.tickets.values())

    @contextmanager
    def enter(self, wanted_id: str | None) -> Generator[Ticket]:
        """A ticket, until the block ends.

        Raises:
            ProblemError: if the server is stopping, or has too much to do.
        """
        if self.draining:
            raise ProblemError("stopping", "the server is stopping: ask again in a moment", BUSY_S)
        if len(self.tickets) >= self.limits.requests:
            raise ProblemError("busy", f"{len(self.tickets)} requests are being served, which is the limit", BUSY_S)
        self._refuse_full_queue()
        ticket = Ticket(self._free_id(wanted_id))
        self.tickets[ticket.id] = ticket
        try:
            yield ticket
        finally:
            ticket.cancel()
            del self.tickets[ticket.id]

    def reserve(self, ticket: Ticket, size_bytes: int) -> None:
        """Let ``ticket`` hold more bytes.

        Raises:
            ProblemError: if all of them would hold too many.
        """
        if self.held_bytes + size_bytes > self.limits.held_bytes:
            raise ProblemError(
                "busy", f"requests in memory have {self.held_bytes / 1e6:.0f} MB, there is no room for more", BUSY_S
            )
        ticket.held_bytes += size_bytes

    def stop(self) -> None:
        """End every request that is still in: each is answered that the server is stopping."""
        self.stopped = True
        for ticket in self.tickets.values():
            if ticket.task is not None:
                ticket.task.cancel()

    def _free_id(self, wanted: str | None) -> str:
        if wanted is not None and ID.fullmatch(wanted) and wanted not in self.tickets:
            return wanted
        return str(uuid.uuid4())
