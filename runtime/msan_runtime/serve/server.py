"""The process: a socket, uvicorn, patience with an end, and signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, cast

import numpy as np

from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MsanError
from msan_runtime.serve.app import Service
from msan_runtime.serve.options import Limits, ServeError

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

__all__ = ["bind", "prepare", "serve"]

HEAD_S = 10.0
"""How long a connection may take for a request's head, at most twice over."""

STOP_S = 5.0
"""How long requests that were told to end may take for that."""

POLL_S = 0.05

CLIENTS_WORDS = ("python_multipart", "tifffile", "PIL", "msan_runtime.pictures.notes")
"""Loggers that tell of what clients send, without the request's number: what matters of it stands in the answer."""

HEAD_BYTES = 32 * 1024

logger = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A socket at ``host`` and ``port``, on which nobody listens yet; port 0 takes a free one.

    Raises:
        ServeError: if it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except UnicodeError as error:  # of the encoding of names
        raise ServeError(
            f"cannot listen on {host}, port {port}: that is no host's name. Choose another --host"
        ) from error
    except OSError as error:
        wrong_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        other = "host" if wrong_host else "port"
        raise ServeError(f"cannot listen on {host}, port {port}: {error.strerror}. Choose another --{other}") from error
    return bound


def prepare(deblurrer: Deblurrer) -> None:
    """Run the network once on each kind of picture, so that no request opens a backend or waits for a first run."""
    deblurrer.deblur(np.zeros((64, 64, 3), np.uint8))
    if deblurrer.bundle.graph(prefer=("fp32",), io="float32") is None:
        return
    try:
        deblurrer.deblur(np.zeros((64, 64, 3), np.uint16))
    except MsanError as error:
        logger.warning("pictures of more than 8 bits cannot be deblurred here: %s", error)


def serve(service: Service, limits: Limits, bound: socket.socket, *, started: Callable[[], None]) -> None:
    """Serve on ``bound`` until SIGTERM or SIGINT, then finish what was accepted, and close ``service``.

    Args:
        service: what answers.
        limits: of connections and of the time for finishing.
        bound: from :func:`bind`; closed in the end.
        started: called when requests are taken.
    """
    try:
        with _silenced(CLIENTS_WORDS):
            asyncio.run(_serve(service, limits, bound, started))
    finally:
        service.desk.close()


@contextlib.contextmanager
def _silenced(names: Sequence[str]) -> Generator[None]:
    """Loggers, and those under them, that say nothing until the block ends."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


async def _serve(service: Service, limits: Limits, bound: socket.socket, started: Callable[[], None]) -> None:
    import uvicorn

    config = uvicorn.Config(
        service.app,
        http=_protocol(limits.connections, min(HEAD_S, limits.body_s)),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(STOP_S),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    server = uvicorn.Server(config)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(sig: int, frame: FrameType | None) -> None:
        del sig, frame
        if service.admission.draining:  # the second time: at once
            server.force_exit = server.should_exit = True
        service.admission.draining = True
        loop.call_soon_threadsafe(told.set)

    server.handle_exit = on_signal
    draining = asyncio.create_task(_drain(service, limits, server, told))
    starting = asyncio.create_task(_announce(server, started))
    try:
        await server.serve(sockets=[bound])
    finally:
        for task in (draining, starting):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _announce(server: uvicorn.Server, started: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(POLL_S)
    started()


async def _drain(service: Service, limits: Limits, server: uvicorn.Server, told: asyncio.Event) -> None:
    """When told, wait for the requests inside; then end those that are left, and the server."""
    await told.wait()
    tickets = service.admission.tickets
    until = time.monotonic() + limits.drain_s
    while tickets and time.monotonic() < until:
        await asyncio.sleep(POLL_S)
    service.admission.stop()
    until = time.monotonic() + STOP_S
    while tickets and time.monotonic() < until:
        await asyncio.sleep(POLL_S)
    server.should_exit = True


def _protocol(most_connections: int, head_s: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP over h11, which also closes connections that are too many or take too long to ask."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            if len(self.connections) > most_connections:
                transport.abort()
                return
            self._timer = self.loop.call_later(head_s, self._look, (None, False))

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if hasattr(self, "_timer"):
                self._timer.cancel()

        def _look(self, last: object) -> None:
            """Close it if nothing has happened since ``last``, and no request is at work."""
            closing = self.transport.is_closing()
            cycle = cast("RequestResponseCycle | None", self.cycle)  # it is None before the first request
            idle = closing or cycle is None or cycle.response_complete
            now = (cycle, closing) if idle else None
            if now is not None and now == last:
                self.transport.abort()
                return
            self._timer = self.loop.call_later(head_s, self._look, now)

    return PatientProtocol
