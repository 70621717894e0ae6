"""What each path does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from msan_runtime.serve.admission import Admission, Ticket
from msan_runtime.serve.asgi import Receive, Reply, Scope, Send, header, send_reply
from msan_runtime.serve.body import parts_of_body, read_body
from msan_runtime.serve.desk import Desk, Task
from msan_runtime.serve.guard import REQUEST_ID
from msan_runtime.serve.inference import HEADER_LENGTH, MODEL_VERSION, TensorTask, model_config, model_metadata
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.multipart import boundary_of, picture_of_form
from msan_runtime.serve.pictures import PictureTask, options_from_query
from msan_runtime.serve.problems import ClientGoneError, ProblemError

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["Endpoint", "Endpoints"]

T = TypeVar("T")
Handler = Callable[["Request", ExitStack], Awaitable[Reply]]


class Endpoint:
    """An ASGI application that sends what its handler returns.

    What the handler enters into its stack, a ticket for example, is held until the answer has been taken.
    """

    def __init__(self, handler: Handler, *, within_s: float = 30.0) -> None:
        self._handler = handler
        self._within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.requests import Request

        with ExitStack() as stack:
            reply = await self._handler(Request(scope, receive), stack)
            if not await send_reply(reply, send, within_s=self._within_s):
                raise ClientGoneError


class Endpoints:
    """The handlers of one server."""

    def __init__(self, model: str, desk: Desk, admission: Admission, metrics: Metrics) -> None:
        self._model = model
        self._desk = desk
        self._admission = admission
        self._metrics = metrics

    async def deblur(self, request: Request, stack: ExitStack) -> Reply:
        """``POST /v1/deblur``."""
        options = options_from_query(request.query_params.multi_items(), request.headers.get("accept"))
        boundary = boundary_of(request.headers.get("content-type"))
        ticket = self._enter(request, stack)
        if boundary is None:
            body = await read_body(request.scope, request.receive, self._admission, ticket)
        else:
            parts = parts_of_body(request.scope, request.receive, self._admission, ticket)
            body = await picture_of_form(parts, boundary)
        if not body:
            raise ProblemError("bad-picture", "the body is empty: send a picture, for example curl --data-binary @FILE")
        task = PictureTask(body, options, most_pixels=self._admission.limits.pixels)
        del body  # the task lets it go once it is decoded
        return await self._run(task, ticket, request)

    async def progress(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /v1/requests/{id}``."""
        del stack
        ticket = self._admission.tickets.get(request.path_params["id"])
        if ticket is None:
            raise ProblemError("not-found", "no such request is at work: it has ended, or has not come yet")
        taken, total = ticket.tiles
        return _json(
            {
                "state": ticket.state,
                "ahead": self._desk.ahead_of(ticket),
                "tiles_done": max(taken, 0),
                "tiles_total": total,
            }
        )

    async def infer(self, request: Request, stack: ExitStack) -> Reply:
        """``POST /v2/models/{model}/infer``."""
        self._check_model(request)
        json_bytes = _json_bytes(request.scope)
        ticket = self._enter(request, stack)
        body = await read_body(request.scope, request.receive, self._admission, ticket)
        task = TensorTask(body, json_bytes, self._model, most_pixels=self._admission.limits.pixels)
        del body
        return await self._run(task, ticket, request)

    async def model(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /v2/models/{model}``."""
        del stack
        self._check_model(request)
        return _json(model_metadata(self._model))

    async def config(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /v2/models/{model}/config``."""
        del stack
        self._check_model(request)
        return _json(model_config(self._model))

    async def model_ready(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /v2/models/{model}/ready``."""
        self._check_model(request)
        return await self.ready(request, stack)

    async def server(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /v2``."""
        del request, stack
        extensions = ["binary_tensor_data", "model_configuration"]
        return _json({"name": "msan", "version": version("msan"), "extensions": extensions})

    async def live(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /healthz``: the process answers."""
        del request, stack
        return _json({"status": "ok"})

    async def ready(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /readyz``: requests are taken."""
        del request, stack
        if self._admission.draining:
            raise ProblemError("stopping", "the server is stopping")
        return _json({"status": "ok"})

    async def metrics(self, request: Request, stack: ExitStack) -> Reply:
        """``GET /metrics``."""
        del request, stack
        body, media_type = self._metrics.text()
        return Reply(media_type=media_type, body=body)

    def _enter(self, request: Request, stack: ExitStack) -> Ticket:
        ticket = stack.enter_context(self._admission.enter(request.headers.get("x-request-id")))
        request.scope[REQUEST_ID] = ticket.id
        return ticket

    async def _run(self, task: Task, ticket: Ticket, request: Request) -> Reply:
        return await _while_wanted(self._desk.run(task, ticket), request.receive)

    def _check_model(self, request: Request) -> None:
        model, wanted = request.path_params["model"], request.path_params.get("version", MODEL_VERSION)
        if model != self._model:
            raise ProblemError("not-found", f"no model {model[:80]!r}. There is one: {self._model}")
        if wanted != MODEL_VERSION:
            raise ProblemError("not-found", f"no version {wanted[:40]!r} of {model}. There is one: {MODEL_VERSION}")


async def _while_wanted(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What ``work`` gives; it is cancelled when the client leaves.

    Raises:
        ClientGoneError: if it left.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return await task
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})
        if not task.cancelled():
            task.exception()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json_bytes(scope: Scope) -> int | None:
    text = header(scope, HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ProblemError("malformed", f"{HEADER_LENGTH} must be a number of bytes, not {text[:40]!r}")
    return int(text)


def _json(body: dict[str, Any]) -> Reply:
    return Reply(body=json.dumps(body).encode())
