"""Bodies of requests: read in parts, within limits of bytes and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from msan_runtime.serve.admission import Admission, Ticket
from msan_runtime.serve.asgi import Message, Receive, Scope, header, patience_s
from msan_runtime.serve.options import Limits
from msan_runtime.serve.problems import ClientGoneError, ProblemError

__all__ = ["discard", "parts_of_body", "read_body"]

DISCARD_S = 2.0


async def read_body(scope: Scope, receive: Receive, admission: Admission, ticket: Ticket) -> bytes:
    """The whole body.

    Raises:
        ProblemError: if it is too large, comes too slowly, or finds no room.
        ClientGoneError: if the client left.
    """
    parts = [part async for part in parts_of_body(scope, receive, admission, ticket)]
    return b"".join(parts)


async def parts_of_body(scope: Scope, receive: Receive, admission: Admission, ticket: Ticket) -> AsyncIterator[bytes]:
    """The parts of the body as they come, each counted as held by ``ticket``.

    Raises:
        ProblemError: if it is too large, comes too slowly, is compressed, or finds no room.
        ClientGoneError: if the client left.
    """
    _refuse_compressed(scope)
    announced = _announced_bytes(scope, admission.limits)
    admission.reserve(ticket, announced)
    received_bytes, started = 0, time.monotonic()
    more = True
    while more:
        message = await _next(receive, admission.limits, started, received_bytes)
        part: bytes = message.get("body", b"")
        received_bytes += len(part)
        if received_bytes > admission.limits.body_bytes:
            raise _too_large(admission.limits)
        if received_bytes > announced:
            admission.reserve(ticket, received_bytes - announced)
            announced = received_bytes
        more = message.get("more_body", False)
        yield part


async def discard(receive: Receive) -> None:
    """Read what a client still sends, for a moment: many do not listen for an answer before they have sent all."""
    try:
        async with asyncio.timeout(DISCARD_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return


async def _next(receive: Receive, limits: Limits, started: float, received_bytes: int) -> Message:
    try:
        async with asyncio.timeout(patience_s(limits.body_s, started, received_bytes)):
            message = await receive()
    except TimeoutError:
        raise ProblemError(
            "slow-sender",
            f"the body did not come within {limits.body_s:g} s and a second for each 64 KiB: "
            f"there were {received_bytes} bytes of it",
        ) from None
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message


def _announced_bytes(scope: Scope, limits: Limits) -> int:
    text = header(scope, "content-length") or "0"
    size_bytes = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else limits.body_bytes + 1
    if size_bytes > limits.body_bytes:
        raise _too_large(limits)
    return size_bytes


def _too_large(limits: Limits) -> ProblemError:
    return ProblemError(
        "body-too-large", f"the body has more than {limits.body_bytes / 1e6:g} MB, which is the limit of this server"
    )


def _refuse_compressed(scope: Scope) -> None:
    coding = header(scope, "content-encoding")
    if coding is not None and coding.strip().lower() not in ("", "identity"):
        raise ProblemError("unsupported-format", f"a body in Content-Encoding {coding[:40]} is not read: send it plain")
