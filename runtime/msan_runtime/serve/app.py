"""The server as an ASGI application: paths, and what stands before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import MissingExtraError
from msan_runtime.serve.admission import Admission
from msan_runtime.serve.asgi import App, Receive, Scope, Send
from msan_runtime.serve.desk import Desk
from msan_runtime.serve.endpoints import Endpoint, Endpoints, Handler
from msan_runtime.serve.guard import ENDPOINT, AccessCheck, Observer, ProblemAnswers
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.options import Access, Limits
from msan_runtime.serve.pages import page_handlers
from msan_runtime.serve.problems import ProblemError

if TYPE_CHECKING:
    from starlette.routing import Route
    from starlette.types import ASGIApp

__all__ = ["Service", "build_service", "paths_of", "require_serve"]

MODEL = "/v2/models/{model}"
VERSION = f"{MODEL}/versions/{{version}}"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A server's application, and the parts that its process steers.

    Attributes:
        app: the ASGI application.
        admission: who is inside, and whether more are let in.
        desk: the threads; to be closed when the server has ended.
    """

    app: App
    admission: Admission
    desk: Desk


def require_serve() -> None:
    """Check that the extra is installed.

    Raises:
        MissingExtraError: if it is not.
    """
    from importlib.util import find_spec

    for package in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "serve")


def build_service(deblurrer: Deblurrer, limits: Limits, access: Access) -> Service:
    """A service around ``deblurrer``, which then belongs to the service's own thread, and is closed by its desk."""
    metrics = Metrics(deblurrer)
    desk = Desk(deblurrer, limits, metrics)
    admission = Admission(limits, desk.refuse_full_queue)
    endpoints = Endpoints(deblurrer.bundle.manifest.name, desk, admission, metrics)
    routes = _routes(paths_of(endpoints), limits)
    app: App = ProblemAnswers(AccessCheck(_Routed(routes), access), admission)
    if access.origins:
        app = _with_cors(app, access.origins)
    return Service(app=Observer(_Named(app, routes), metrics), admission=admission, desk=desk)


def paths_of(endpoints: Endpoints) -> dict[tuple[str, str], Handler]:
    """Handlers by method and path."""
    paths: dict[tuple[str, str], Handler] = {
        ("POST", "/v1/deblur"): endpoints.deblur,
        ("GET", "/v1/requests/{id}"): endpoints.progress,
        ("GET", "/healthz"): endpoints.live,
        ("GET", "/readyz"): endpoints.ready,
        ("GET", "/metrics"): endpoints.metrics,
        ("GET", "/v2"): endpoints.server,
        ("GET", "/v2/health/live"): endpoints.live,
        ("GET", "/v2/health/ready"): endpoints.ready,
    }
    for model in (MODEL, VERSION):
        paths[("GET", model)] = endpoints.model
        paths[("GET", f"{model}/ready")] = endpoints.model_ready
        paths[("GET", f"{model}/config")] = endpoints.config
        paths[("POST", f"{model}/infer")] = endpoints.infer
    return paths | {("GET", path): handler for path, handler in page_handlers().items()}


def _routes(paths: dict[tuple[str, str], Handler], limits: Limits) -> list[Route]:
    from starlette.routing import Route

    return [
        Route(path, cast("ASGIApp", Endpoint(handler, within_s=limits.body_s)), methods=[method])
        for (method, path), handler in paths.items()
    ]


class _Routed:
    """Starlette's router, which raises what it would otherwise answer in plain text."""

    def __init__(self, routes: list[Route]) -> None:
        from starlette.routing import Router

        self._router = Router(routes, redirect_slashes=False, default=cast("ASGIApp", _nothing_here))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.exceptions import HTTPException

        scope["app"] = self  # whereupon Starlette raises
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:  # of a method alone
            allow = ", ".join(sorted(error.headers["Allow"].split(", "))) if error.headers else ""
            raise ProblemError("method-not-allowed", f"this path knows {allow}: see /docs", allow=allow) from None


class _Named:
    """Notes which endpoint is asked, before anybody is refused there; ``/v2/…/`` is ``/v2/…``."""

    def __init__(self, app: App, routes: list[Route]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.routing import Match

        if scope["path"].startswith("/v2/"):
            scope["path"] = scope["path"].rstrip("/")
        for route in self._routes:
            if route.matches(scope)[0] != Match.NONE:
                scope[ENDPOINT] = route.path
                break
        await self._app(scope, receive, send)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    del receive, send
    raise ProblemError("not-found", f"there is nothing at {scope['path'][:200]}: see /docs")


def _with_cors(app: App, origins: frozenset[str]) -> App:
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=sorted(origins),
        allow_methods=("GET", "POST"),
        allow_headers=("authorization", "content-type", "x-request-id", "inference-header-content-length"),
        expose_headers=("x-request-id", "retry-after", "inference-header-content-length"),
    )
