"""Answers, and how they are sent: in parts, to a client that must take them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BYTES_PER_S", "App", "Message", "Receive", "Reply", "Scope", "Send", "header", "patience_s", "send_reply"]

# ASGI's own types are dictionaries of anything.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PART_BYTES = 64 * 1024

BYTES_PER_S = 64 * 1024
"""Who sends or takes less than this, on average, gets only the fixed time."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer.

    Attributes:
        status: of HTTP.
        media_type: of the body.
        headers: beside type and length, names in lower case.
        body: one buffer.
    """

    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


async def send_reply(reply: Reply, send: Send, *, within_s: float = 30.0) -> bool:
    """Send ``reply``; ``False`` if the client took too long to take it: the connection is then to be closed.

    How long is too long, :func:`patience_s` says.
    """
    headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), **reply.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    started = time.monotonic()
    view = memoryview(reply.body)
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        for at in range(0, max(len(view), 1), PART_BYTES):
            last = at + PART_BYTES >= len(view)
            async with asyncio.timeout(patience_s(within_s, started, at)):
                await send(
                    {"type": "http.response.body", "body": bytes(view[at : at + PART_BYTES]), "more_body": not last}
                )
    except TimeoutError:
        return False
    return True


def patience_s(within_s: float, started: float, done_bytes: int) -> float:
    """How long to wait for the next part of a body that began at ``started``, by ``time.monotonic``.

    The whole may take ``within_s`` seconds, and one more for each ``BYTES_PER_S`` bytes of it that passed; a part
    may take ``within_s``.
    """
    left_s = started + within_s + done_bytes / BYTES_PER_S - time.monotonic()
    return min(max(left_s, 0.0), within_s)


def header(scope: Scope, name: str) -> str | None:
    """The first header of that name (lower case), or ``None``."""
    wanted = name.encode("latin-1")
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)
