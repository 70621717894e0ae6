"""Ray's tokens: a cluster of one's own gets one that is kept nowhere, others are asked whether they want one.

By itself Ray leaves the token of a cluster of its own in the home folder, which it then sends to clusters that have
none; and to an address it sends none (Ray 2.60, ``ray._private.authentication``).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

from msan_runtime.cluster.options import RayOptions

__all__ = ["decide_authentication", "refuses_token"]

MODE = "RAY_AUTH_MODE"
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

ASKED_FOR_S = 60.0

REFUSED = ("AuthenticationError", "InvalidAuthToken")
"""Ray's words for a missing or wrong token."""


def decide_authentication(options: RayOptions) -> None:
    """Set Ray's variables of the environment, unless they are set, before Ray is imported."""
    if MODE in os.environ:
        return
    if options.address == "local":
        os.environ[MODE] = "token"
        if not any(name in os.environ for name in TOKENS):
            os.environ[TOKENS[0]] = secrets.token_hex(32)
    else:
        refused = refuses_token(options.address, **{MODE: "disabled"})
        if refused is not None:
            os.environ[MODE] = "token" if refused else "disabled"


def refuses_token(address: str, **environment: str) -> bool | None:
    """Whether the cluster refuses one who comes with the token of the environment; ``None`` if it does not answer.

    Args:
        address: of :class:`RayOptions`.
        environment: variables in place of this process's.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        command += ["--address", address]
    asking = {**os.environ, **environment}
    try:
        done = subprocess.run(command, env=asking, capture_output=True, text=True, timeout=ASKED_FOR_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return False
    return True if any(name in done.stderr for name in REFUSED) else None
