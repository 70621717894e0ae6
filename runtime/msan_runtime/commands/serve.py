"""``msan serve``: deblurring over HTTP."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msan_runtime.commands.screen import printable
from msan_runtime.commands.values import bytes_from_text, size_from_text

if TYPE_CHECKING:
    from msan_runtime.serve.options import Access

__all__ = ["serve"]

MODEL, WHO, MOST = "Model", "Who may ask", "Limits"
TOKEN_VARIABLE = "MSAN_SERVE_TOKEN"
QUEUE = 64


def _read_by(parse: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """A check of an option, which typer names where it fails."""

    def check(text: str | None) -> str | None:
        if text is not None:
            parse(text)
        return text

    return check


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number. Write one like 30")
    return value


Bundle = Annotated[str, typer.Option(help="A bundle's folder, or the name of a shipped one.", rich_help_panel=MODEL)]
Backend = Annotated[
    str, typer.Option(help="auto, rtx, tensorrt, ort-cuda, openvino-bf16, openvino or ort-cpu.", rich_help_panel=MODEL)
]
Tile = Annotated[
    str | None,
    typer.Option(
        metavar="HxW", callback=_read_by(size_from_text), help="Largest tile, px, like 512x768.", rich_help_panel=MODEL
    ),
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Overlap of tiles, px.", rich_help_panel=MODEL)]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", callback=_read_by(bytes_from_text), help="For the network, like 2GiB.", rich_help_panel=MODEL
    ),
]
NoRebuild = Annotated[
    bool, typer.Option("--no-rebuild", help="Never build an engine at the start.", rich_help_panel=MODEL)
]
RequireSignature = Annotated[
    Path | None,
    typer.Option(metavar="KEY.pem", help="Refuse a bundle not signed with this public key.", rich_help_panel=MODEL),
]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=WHO)]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=WHO)]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help=f"File with a bearer token; or {TOKEN_VARIABLE}.", rich_help_panel=WHO),
]
OpenMetrics = Annotated[
    bool, typer.Option("--open-metrics", help="Give /metrics without the token.", rich_help_panel=WHO)
]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="Further name to be called by; again for more.", rich_help_panel=WHO)
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(help="Other site whose pages may ask (CORS); again for more.", rich_help_panel=WHO),
]
MaxBody = Annotated[
    str,
    typer.Option(metavar="SIZE", callback=_read_by(bytes_from_text), help="Of a request.", rich_help_panel=MOST),
]
MaxMegapixels = Annotated[
    float, typer.Option(min=0.001, callback=_finite, help="Of a picture, and decoded at once.", rich_help_panel=MOST)
]
MaxRequests = Annotated[int, typer.Option(min=1, help="At once.", rich_help_panel=MOST)]
Queue = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"Of those, waiting for the network; {QUEUE}, or all if they are fewer.", rich_help_panel=MOST
    ),
]
BodyTimeout = Annotated[
    float,
    typer.Option(min=1, callback=_finite, help="Seconds for a body to come, or an answer to go.", rich_help_panel=MOST),
]
Drain = Annotated[
    float,
    typer.Option(min=0, callback=_finite, help="Seconds for accepted requests after SIGTERM.", rich_help_panel=MOST),
]

logger = logging.getLogger(__name__)


def serve(
    bundle: Bundle = "msan-s",
    backend: Backend = "auto",
    tile: Tile = None,
    overlap: Overlap = None,
    memory: Memory = None,
    no_rebuild: NoRebuild = False,
    require_signature: RequireSignature = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_file: TokenFile = None,
    open_metrics: OpenMetrics = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    max_body: MaxBody = "100MB",
    max_megapixels: MaxMegapixels = 50.0,
    max_requests: MaxRequests = 128,
    queue: Queue = None,
    body_timeout: BodyTimeout = 30.0,
    drain: Drain = 30.0,
) -> None:
    """Serve deblurring over HTTP: a page, an API, metrics, and the Open Inference Protocol (docs/serve.md).

    SIGTERM or Ctrl-C finishes what was accepted and ends. Exit code: 0 ended so, 2 could not start.
    """
    from msan_runtime.deblur import Deblurrer
    from msan_runtime.serve.app import build_service, require_serve
    from msan_runtime.serve.options import Limits
    from msan_runtime.serve.server import bind, prepare, serve

    require_serve()
    limits = Limits(
        body_bytes=bytes_from_text(max_body),
        pixels=round(max_megapixels * 1e6),
        requests=max_requests,
        queue=_queue(queue, max_requests),
        body_s=body_timeout,
        drain_s=drain,
    )
    access = _access(host, token_file, allow_host or [], allow_origin or [], open_metrics=open_metrics)
    bound = bind(host, port)
    deblurrer = Deblurrer.load(
        bundle,
        backend,
        tile=None if tile is None else size_from_text(tile),
        overlap_px=overlap,
        memory_bytes=None if memory is None else bytes_from_text(memory),
        rebuild=not no_rebuild,
        public_key=require_signature,
    )
    prepare(deblurrer)
    words = f"msan serves on {_address(host, bound.getsockname()[1])} ({deblurrer.backend.name}). Ctrl-C ends it"
    serve(build_service(deblurrer, limits, access), limits, bound, started=lambda: typer.echo(printable(words)))


def _queue(queue: int | None, most_requests: int) -> int:
    """How many of ``most_requests`` may wait."""
    if queue is None:
        return min(QUEUE, most_requests)
    if queue > most_requests:
        raise typer.BadParameter(
            f"{queue} requests cannot wait where --max-requests lets {most_requests} in. Give fewer",
            param_hint="'--queue'",
        )
    return queue


def _access(host: str, token_file: Path | None, names: list[str], origins: list[str], *, open_metrics: bool) -> Access:
    from msan_runtime.serve.options import Access, hosts_for, is_loopback

    access = Access(
        token=_token(token_file),
        open_metrics=open_metrics,
        hosts=hosts_for(host, frozenset(name.lower() for name in names)),
        origins=frozenset(origins),
    )
    if access.token is None and not is_loopback(host):
        logger.warning("whoever reaches %s can use this server: give it a --token-file", host)
    return access


def _token(path: Path | None) -> str | None:
    """The token of the file, or of the environment."""
    text = os.environ.get(TOKEN_VARIABLE) if path is None else path.read_text(encoding="utf-8", errors="replace")
    return None if text is None else text.strip()


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
