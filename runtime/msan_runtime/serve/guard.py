"""What every request passes: its number, who asks, and whatever goes wrong turned into words."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
import uuid
from urllib.parse import urlsplit

from msan_runtime.errors import BackendError, BundleError, OutOfMemoryError
from msan_runtime.serve.admission import Admission
from msan_runtime.serve.asgi import App, Message, Receive, Scope, Send, header, send_reply
from msan_runtime.serve.body import discard
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.options import Access
from msan_runtime.serve.problems import ClientGoneError, ProblemError, problem_reply

__all__ = ["ENDPOINT", "OPEN_PATHS", "REQUEST_ID", "AccessCheck", "Observer", "ProblemAnswers"]

ENDPOINT, REQUEST_ID, ERROR = "msan.endpoint", "msan.request_id", "msan.error"
"""Keys in the scope: the endpoint's name for the metrics, the request's number, and the kind of its problem."""

HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
OPEN_PATHS = HEALTH_PATHS | {"/", "/docs", "/openapi.json", "/page/style.css", "/page/script.js"}
"""Given without the token: they tell nothing but that the server is there."""

SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

logger = logging.getLogger(__name__)


class Observer:
    """Outermost: numbers requests, adds headers that all answers have, and counts."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope[REQUEST_ID] = str(uuid.uuid4())
        status = "gone"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message = {**message, "headers": _headers(message["headers"], scope)}
            await send(message)

        started = time.perf_counter()
        with self._metrics.in_progress():
            await self._app(scope, receive, noted)
        self._metrics.note_answer(scope.get(ENDPOINT, "other"), status, time.perf_counter() - started)
        if ERROR in scope:
            self._metrics.note_error(scope[ERROR])


def _headers(given: list[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in given}
    own = [pair for pair in SAFETY if pair[0] not in names]
    if b"cache-control" not in names:
        own.append((b"cache-control", b"no-store"))
    return [*given, *own, (b"x-request-id", scope[REQUEST_ID].encode())]


class ProblemAnswers:
    """Answers with a problem where there is no result. What was not foreseen is logged, and its number told."""

    def __init__(self, app: App, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body_ended = started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def received() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, received, sent)
        except ClientGoneError:
            scope[ERROR] = "gone"
        except asyncio.CancelledError:
            if not self._admission.stopped or started:
                raise
            await self._answer(ProblemError("stopping", "the server stopped before this was done", 5), scope, send)
        except Exception as error:
            problem = _problem_from(error, scope[REQUEST_ID])
            if started:
                scope[ERROR] = problem.kind
                return  # the connection is closed in the middle of the answer, which the client notices
            if not body_ended and problem.kind != "slow-sender" and header(scope, "expect") is None:
                await discard(received)
            await self._answer(problem, scope, send, close=not body_ended)

    async def _answer(self, problem: ProblemError, scope: Scope, send: Send, *, close: bool = True) -> None:
        scope[ERROR] = problem.kind
        reply = problem_reply(problem, scope[REQUEST_ID])
        if close:
            reply.headers["connection"] = "close"
        await send_reply(reply, send)


def _problem_from(error: Exception, request_id: str) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        return ProblemError("no-room", "there is too little memory for this picture now", 5)
    if isinstance(error, BundleError):
        return ProblemError("unsupported-format", "this server's bundle takes no pictures of more than 8 bits")
    if isinstance(error, BackendError):
        logger.error("request %s: %s", request_id, error)
        return ProblemError("backend-failed", f"the network could not be run; the server's log says why: {request_id}")
    logger.error("request %s failed, which is a bug of msan:\n%s", request_id, traceback.format_exc())
    return ProblemError("failed", f"this is a bug of msan; the server's log has the reason under {request_id}")


class AccessCheck:
    """Refuses requests for other names, from other pages, and without the token."""

    def __init__(self, app: App, access: Access) -> None:
        self._app = app
        self._access = access
        self._expected = None if access.token is None else f"Bearer {access.token}".encode()
        self._open = OPEN_PATHS | ({"/metrics"} if access.open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = header(scope, "host") or ""
        # Probes of balancers ask in HTTP/1.0, without a name. Browsers, whom the check is for, always send one.
        if header(scope, "host") is not None or scope["path"] not in HEALTH_PATHS:
            self._check_host(host)
        self._check_origin(header(scope, "origin"), host)
        if self._expected is not None and scope["path"] not in self._open:
            given = header(scope, "authorization") or ""
            scheme, _, token = given.partition(" ")
            # Compared in constant time: how long it takes tells nothing of how much is right.
            if not hmac.compare_digest(f"{scheme.title()} {token.strip()}".encode(), self._expected):
                raise ProblemError("unauthorized", "this needs the server's token: Authorization: Bearer TOKEN")
        await self._app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._access.hosts is not None and name.lower() not in self._access.hosts:
            raise ProblemError("misdirected", f"there is no {name[:80]!r} here: allow it with msan serve --allow-host")

    def _check_origin(self, origin: str | None, host: str) -> None:
        """Pages of other sites can send forms here from a visitor's browser: their scripts' names are refused."""
        if origin is None or origin in self._access.origins or urlsplit(origin).netloc.lower() == host.lower():
            return
        raise ProblemError("forbidden-origin", f"{origin[:80]} may not ask: allow it with msan serve --allow-origin")
