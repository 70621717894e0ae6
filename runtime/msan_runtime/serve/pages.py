"""The page at ``/``, and the description of the interface at ``/docs``: files that ask for nothing elsewhere."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from msan_runtime.serve.asgi import Reply
from msan_runtime.serve.endpoints import Handler

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["POLICY", "openapi_document", "page_handlers"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HTML, CSS, SCRIPT = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"


def page_handlers() -> dict[str, Handler]:
    """Handlers of all pages by path."""
    document = json.dumps(openapi_document()).encode()
    return {
        "/": _fixed(_file("index.html"), HTML),
        "/page/style.css": _fixed(_file("style.css"), CSS),
        "/page/script.js": _fixed(_file("script.js"), SCRIPT),
        "/docs": _fixed(_reference(openapi_document()).encode(), HTML),
        "/openapi.json": _fixed(document, "application/json"),
    }


@cache
def openapi_document() -> dict[str, Any]:
    """The interface as OpenAPI 3.1."""
    document: dict[str, Any] = json.loads(_file("openapi.json"))
    document["info"]["version"] = version("msan")
    return document


def _file(name: str) -> bytes:
    return (files("msan_runtime") / "serve" / "page" / name).read_bytes()


def _fixed(body: bytes, media_type: str) -> Handler:
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    reply = Reply(media_type=media_type, headers=headers, body=body)

    async def handler(request: Request, stack: ExitStack) -> Reply:
        del request, stack
        return reply

    return handler


def _reference(document: dict[str, Any]) -> str:
    """The document as a page without scripts."""
    template = _file("docs.html").decode()
    sections = "\n".join(
        _operation(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    about = escape(document["info"]["description"])
    return template.replace("{{about}}", about).replace("{{operations}}", sections)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<section><h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2>',
        f"<p>{escape(operation['summary'])}</p>",
    ]
    parameters = [(each["name"], f"{each['in']}: {each['description']}") for each in operation.get("parameters", ())]
    bodies = [
        (media_type, content.get("description") or content["schema"].get("description", ""))
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    answers = [(status, answer["description"]) for status, answer in operation["responses"].items()]
    for title, rows in (("Parameters", parameters), ("Body", bodies), ("Answers", answers)):
        if rows:
            parts.append(_table(title, rows))
    return "\n".join([*parts, "</section>"])


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{escape(text)}</td></tr>' for name, text in rows
    )
    return f"<table><caption>{title}</caption>{cells}</table>"
