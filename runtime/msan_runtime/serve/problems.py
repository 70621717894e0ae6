"""Everything that can be wrong with a request, as RFC 9457 tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from msan_runtime.serve.asgi import Reply

__all__ = ["PROBLEMS", "ClientGoneError", "ProblemError", "ProblemKind", "problem_reply"]

ProblemKind = Literal[
    "malformed",
    "unauthorized",
    "forbidden-origin",
    "not-found",
    "method-not-allowed",
    "not-acceptable",
    "slow-sender",
    "body-too-large",
    "picture-too-large",
    "unsupported-format",
    "misdirected",
    "bad-picture",
    "bad-option",
    "busy",
    "failed",
    "backend-failed",
    "no-room",
    "stopping",
]

PROBLEMS: dict[ProblemKind, tuple[int, str]] = {
    "malformed": (400, "The request cannot be read"),
    "unauthorized": (401, "A token is needed"),
    "forbidden-origin": (403, "Pages of this origin may not ask"),
    "not-found": (404, "There is nothing here"),
    "method-not-allowed": (405, "This cannot be done here"),
    "not-acceptable": (406, "No format that was asked for can be written"),
    "slow-sender": (408, "The request took too long to come"),
    "body-too-large": (413, "The request is too large"),
    "picture-too-large": (413, "The picture is too large"),
    "unsupported-format": (415, "This is not read here"),
    "misdirected": (421, "This server does not go by that name"),
    "bad-picture": (422, "The picture cannot be used"),
    "bad-option": (422, "An option cannot be used"),
    "busy": (429, "Too many requests at once"),
    "failed": (500, "The server failed"),
    "backend-failed": (503, "The network cannot be run now"),
    "no-room": (503, "The machine has too little memory or disk now"),
    "stopping": (503, "The server is stopping"),
}
"""Status and title of each kind."""

if set(PROBLEMS) != set(get_args(ProblemKind)):
    raise RuntimeError("every kind of problem needs a status and a title")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class ProblemError(Exception):
    """A request that gets no result.

    Attributes:
        kind: one of ``PROBLEMS``.
        detail: what is wrong, the value seen, and what to do.
        retry_after_s: when to ask again, where that helps.
        allow: the methods that the path knows, where it was asked by another.
    """

    kind: ProblemKind
    detail: str
    retry_after_s: int | None = None
    allow: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def problem_reply(problem: ProblemError, request_id: str) -> Reply:
    """The answer that tells of ``problem``. ``error`` is for clients of the Open Inference Protocol."""
    status, title = PROBLEMS[problem.kind]
    body = {
        "type": f"urn:msan:problem:{problem.kind}",
        "title": title,
        "status": status,
        "detail": problem.detail,
        "instance": f"urn:uuid:{request_id}",
        "error": problem.detail,
    }
    headers: dict[str, str] = {}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(problem.retry_after_s)
    if problem.allow is not None:
        headers["allow"] = problem.allow
    if problem.kind == "unauthorized":
        headers["www-authenticate"] = 'Bearer realm="msan"'
    content = json.dumps(body).encode()
    return Reply(status=status, media_type="application/problem+json", headers=headers, body=content)
