"""What a server allows: sizes, numbers and times, and who may ask."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass

from msan_runtime.errors import MsanError

__all__ = ["Access", "Limits", "ServeError", "hosts_for", "is_loopback"]


HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
"""A name as the ``Host`` header has it, without a port."""


class ServeError(MsanError):
    """A server that cannot be started as asked."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a server takes on.

    Attributes:
        body_bytes: of one request's body.
        pixels: of one picture, and of all pictures that are decoded at once.
        requests: accepted at once, from their first byte to the last of their answer.
        queue: of those, how many may wait for the network.
        body_s: how long a body may take to come, or an answer to go, beside a second for each 64 KiB.
        drain_s: how long accepted requests may go on after SIGTERM.

    Raises:
        ServeError: if one of them is under 1 (``drain_s``: under 0), or no finite number.
    """

    body_bytes: int = 100_000_000
    pixels: int = 50_000_000
    requests: int = 128
    queue: int = 64
    body_s: float = 30.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name, least in {"body_bytes": 1, "pixels": 1, "requests": 1, "queue": 1, "body_s": 1, "drain_s": 0}.items():
            value: float = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ServeError(f"the limit {name} must be a number of {least} or more, not {value}")

    @property
    def held_bytes(self) -> int:
        """Of all bodies and answers in memory together, before they are decoded and after they are encoded."""
        return 4 * self.body_bytes

    @property
    def connections(self) -> int:
        """Open at once; further ones are closed without an answer."""
        return 4 * self.requests + 64


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask.

    Attributes:
        token: the bearer token that requests must carry, or ``None`` for none.
        open_metrics: whether ``/metrics`` is given without the token.
        hosts: names in the ``Host`` header that are served, without ports; ``None`` for any.
        origins: other web pages' origins whose scripts may ask (CORS).

    Raises:
        ServeError: for an empty token, or an origin that is none.
    """

    token: str | None = None
    open_metrics: bool = False
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.token is not None and (
            len(self.token) < 16 or not self.token.isascii() or not self.token.isprintable()
        ):
            raise ServeError(
                f"the token must be 16 or more printable ASCII characters, not {len(self.token)} characters. "
                "Make one with: openssl rand -hex 32"
            )
        for origin in sorted(self.origins):
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise ServeError(f"{origin!r} is no origin. Write it like https://example.org")


def hosts_for(address: str, named: frozenset[str]) -> frozenset[str] | None:
    """The ``Host`` names to serve when listening on ``address``; ``None`` for any.

    On loopback only its own names and ``named``: a page elsewhere whose name was pointed at this machine (DNS
    rebinding) is refused. On other addresses those ``named``, or any if none is.

    Raises:
        ServeError: for a name that no ``Host`` header can have.
    """
    for name in sorted(named):
        if HOST.fullmatch(name) is None:
            raise ServeError(f"{name!r} is no host's name. Write it like deblur.example.org, without scheme and port")
    if is_loopback(address):
        return named | {"localhost", "127.0.0.1", "[::1]", _in_header(address)}
    return named | {_in_header(address)} if named else None


def is_loopback(address: str) -> bool:
    """Whether ``address`` is reached from this machine alone."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _in_header(address: str) -> str:
    """As the ``Host`` header has it."""
    return f"[{address}]" if ":" in address else address.lower()
