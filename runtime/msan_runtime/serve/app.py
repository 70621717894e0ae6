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
from msan_runtime.serve.guard import AccessCheck, Observer, ProblemAnswers
from msan_runtime.serve.metrics import Metrics
from msan_runtime.serve.options import Access, Limits
from msan_runtime.serve.pages import page_handlers
from msan_runtime.serve.problems import ProblemError

if TYPE_CHECKING:
    from starlette.routing import Router
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
    app: App = AccessCheck(_router(paths_of(endpoints), limits), access)
    app = ProblemAnswers(app, admission)
    if access.origins:
        app = _with_cors(app, access.origins)
    return Service(app=Observer(app, metrics), admission=admission, desk=desk)


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


def _router(paths: dict[tuple[str, str], Handler], limits: Limits) -> App:
    from starlette.routing import Route, Router

    routes = [
        Route(path, cast("ASGIApp", Endpoint(path, handler, within_s=limits.body_s)), methods=[method])
        for (method, path), handler in paths.items()
    ]
    return _Routed(Router(routes, redirect_slashes=False, default=cast("ASGIApp", _nothing_here)))


class _Routed:
    """Has Starlette's router raise what it would otherwise answer in plain text."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._router(scope, receive, send)


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
