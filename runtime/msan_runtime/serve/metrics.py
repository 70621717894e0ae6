"""What Prometheus is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version

from msan_runtime.deblur import Deblurrer

__all__ = ["Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOGETHER = (1, 2, 4, 8, 16)

COMPUTED = {"openvino-bf16": "bf16"}
"""Backends that compute in another precision than their graph's."""


class Metrics:
    """Counters of one server, in a registry of their own. May be told from any thread."""

    def __init__(self, deblurrer: Deblurrer) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "msan_requests", "Requests answered, by endpoint and status.", ["endpoint", "status"], registry=registry
        )
        self._latency = Histogram(
            "msan_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "msan_stage_seconds", "Time in each stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._batches = Histogram(
            "msan_batch_requests", "Requests that ran together.", buckets=TOGETHER, registry=registry
        )
        self._active = Gauge("msan_requests_in_progress", "Requests at work or waiting.", registry=registry)
        self._depth = Gauge("msan_queue_depth", "Requests that wait for the network.", registry=registry)
        self._pixels = Counter("msan_pixels", "Pixels deblurred.", registry=registry)
        self._errors = Counter("msan_errors", "Requests without a result, by kind.", ["kind"], registry=registry)
        about = Info("msan_backend", "What runs the network.", registry=registry)
        about.info(
            {
                "backend": deblurrer.backend.name,
                "device": deblurrer.backend.device,
                "bundle": deblurrer.bundle.manifest.name,
                "precision": COMPUTED.get(deblurrer.backend.name, deblurrer.backend.precision),
                "version": version("msan"),
            }
        )

    def text(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format, and that format's media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Ask ``depth`` how deep the queue is, whenever Prometheus asks."""
        self._depth.set_function(depth)

    @contextmanager
    def in_progress(self) -> Generator[None]:
        """Count a request while the block runs."""
        with self._active.track_inprogress():
            yield

    def note_answer(self, endpoint: str, status: str, seconds: float) -> None:
        """Count an answer; ``status`` is ``gone`` where nobody waited for it."""
        self._requests.labels(endpoint, status).inc()
        self._latency.labels(endpoint).observe(seconds)

    def note_error(self, kind: str) -> None:
        """Count a request without a result."""
        self._errors.labels(kind).inc()

    def note_pixels(self, count: int) -> None:
        """Count pixels that were deblurred."""
        self._pixels.inc(count)

    def note_stage(self, stage: str, seconds: float) -> None:
        """Count time in a stage."""
        self._stages.labels(stage).observe(seconds)

    def note_batch(self, requests: int) -> None:
        """Count a run of the network, of so many requests."""
        self._batches.observe(requests)

    @contextmanager
    def stage(self, stage: str) -> Generator[None]:
        """Count the block's time for ``stage``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.note_stage(stage, time.perf_counter() - started)
