"""Ray started or joined, and quiet: nothing of it on the screen but what ends the run."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msan_runtime.cluster.authentication import decide_authentication, refuses_token
from msan_runtime.cluster.head import reach, watched
from msan_runtime.cluster.options import ClusterError, RayOptions
from msan_runtime.errors import MissingExtraError

__all__ = ["Pool", "plan_pool", "ray_session"]

logger = logging.getLogger(__name__)

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Attempts, of 40 s each where nobody answers: Ray's own 20 are a quarter of an hour.
    "RAY_NUM_REDIS_GET_RETRIES": "2",
}
"""What Ray reads when it is imported; whoever has set it otherwise is obeyed."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers that the cluster is asked for.

    Attributes:
        fewest, most: of them; Ray starts more while files wait, and ends those that idle.
        gpus, cpus: of each.
    """

    fewest: int
    most: int
    gpus: float
    cpus: float


@contextmanager
def ray_session(options: RayOptions) -> Generator[Any]:
    """The module ``ray``, connected as ``options`` say; a connection that was there before is used, and stays.

    Raises:
        MissingExtraError: without Ray.
        ClusterError: if there is no such cluster.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        if options.head is not None:
            reach(options.head)
    except OSError as error:
        raise _not_there(options.address, error.strerror or str(error)) from error
    if "ray" not in sys.modules:
        decide_authentication(options)
    try:
        import ray

        importlib.import_module("ray.data")  # sets up its loggers
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "ray", "ray") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    there_before = bool(ray.is_initialized())
    if not there_before:
        _connect(ray, options)
    try:
        # Ray prints what it hears of dead nodes and workers.
        with contextlib.redirect_stdout(sys.stderr), watched(_head(ray)), _ended_in_order():
            yield ray
    finally:
        if not there_before:
            ray.shutdown()


@contextmanager
def _ended_in_order() -> Generator[None]:
    """SIGTERM ends the block as an exception, with the exit code of shells; Ray's own handler has another."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_pool(ray: Any, options: RayOptions) -> Pool:
    """The pool that ``options`` ask for, with what they leave open decided by the nodes that are there.

    Raises:
        ClusterError: if a worker fits no node, and no node can join.
    """
    nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    has_gpus = any(node.get("GPU") for node in nodes)
    gpus = options.gpus if options.gpus is not None else 1.0 if has_gpus else 0.0
    cpus = options.cpus if options.cpus is not None else 1.0 if gpus else _cpus_for(options, with_cpus)
    room = sum(_room(node, gpus, cpus) for node in nodes)
    if room and options.workers and room < options.workers[0]:
        logger.warning(
            "there is room for %d workers of %g GPUs and %g CPUs, not for %d", room, gpus, cpus, options.workers[0]
        )
    if room == 0:
        words = f"no node has the {gpus:g} GPUs and {cpus:g} CPUs of a worker"
        if options.address == "local":
            raise ClusterError(f"{words}. Ask for less with --ray-gpus and --ray-cpus")
        logger.warning("%s: waiting for one that joins the cluster", words)
    fewest, most = options.workers or (1, max(room, 1))
    return Pool(fewest=fewest, most=most, gpus=gpus, cpus=cpus)


def _cpus_for(options: RayOptions, with_cpus: Sequence[float]) -> float:
    """As many for each worker as leave room for all that are asked for; all of the smallest node's if none are."""
    whole = max(int(min(with_cpus, default=1.0)), 1)
    if options.workers is None:
        return whole
    fitting = (cpus for cpus in range(whole, 1, -1) if sum(node // cpus for node in with_cpus) >= options.workers[1])
    return next(fitting, 1)


def _room(node: Mapping[str, float], gpus: float, cpus: float) -> int:
    """How many workers fit a node."""
    wanted = [(node.get("GPU", 0.0), gpus), (node.get("CPU", 0.0), cpus)]
    return int(min((there / asked for there, asked in wanted if asked), default=1))


def _connect(ray: Any, options: RayOptions) -> None:
    address = options.address
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if address == "local":
        settings["include_dashboard"] = False
    try:
        with _hushed():
            ray.init(address=address, **settings)
    except Exception as error:  # Ray's own, and those of gRPC
        with contextlib.suppress(Exception):
            ray.shutdown()
        if address != "local" and (type(error).__name__ == "AuthenticationError" or refuses_token(address)):
            raise ClusterError(
                f"the Ray cluster at {address} wants its token. ray get-auth-token prints it on the head: "
                "put it into RAY_AUTH_TOKEN or ~/.ray/auth_token here"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        if address == "local":
            raise ClusterError(f"Ray does not start here: {reason}") from error
        raise _not_there(address, reason) from error


def _not_there(address: str, reason: str) -> ClusterError:
    return ClusterError(f"no Ray cluster at {address}: {reason}. Start one with ray start --head, or give --ray local")


def _head(ray: Any) -> tuple[str, int]:
    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def _hushed() -> Generator[None]:
    """Nothing on the error stream: Ray's C++ core tells there that it was told to tell nothing."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
