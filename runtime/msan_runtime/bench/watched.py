"""A backend that notes what another one is asked for: time, tiles, operations."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

from msan_runtime.backends.base import Backend
from msan_runtime.bench.flops import network_flops
from msan_runtime.bundle import Bundle
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.manifest import Manifest
from msan_runtime.select import Selection, select_backend

__all__ = ["WatchedBackend", "watched_deblurrer"]


class WatchedBackend(Backend):
    """Passes everything on to ``inner`` and counts.

    Attributes:
        inner: what runs the network.
        seconds: spent in ``inner``.
        tiles: that it was given.
        flops: that they take.
    """

    def __init__(self, inner: Backend, manifest: Manifest) -> None:
        self.inner = inner
        self.name = inner.name
        self.device = inner.device
        self.limits = inner.limits
        self.io = inner.io
        self._manifest = manifest
        self.reset()

    def reset(self) -> None:
        """Count from nothing again."""
        self.seconds = 0.0
        self.tiles = 0
        self.flops = 0

    def infer(self, tiles: PictureArray) -> PictureArray:
        self._count(tiles)
        started = time.perf_counter()
        try:
            return self.inner.infer(tiles)
        finally:
            self.seconds += time.perf_counter() - started

    def infer_many(self, tiles: Iterable[PictureArray]) -> Iterator[PictureArray]:
        # Tiles are cut while the inner iterator runs: that time is taken off again.
        results = self.inner.infer_many(self._cut(tiles))
        while True:
            started = time.perf_counter()
            try:
                result = next(results, None)
            finally:
                self.seconds += time.perf_counter() - started
            if result is None:
                return
            yield result

    def close(self) -> None:
        self.inner.close()

    def _cut(self, tiles: Iterable[PictureArray]) -> Generator[PictureArray]:
        source = iter(tiles)
        while True:
            started = time.perf_counter()
            batch = next(source, None)
            self.seconds -= time.perf_counter() - started
            if batch is None:
                return
            self._count(batch)
            yield batch

    def _count(self, tiles: PictureArray) -> None:
        self.tiles += len(tiles)
        self.flops += len(tiles) * network_flops(self._manifest, *tiles.shape[1:3]).total


def watched_deblurrer(bundle: Bundle, backend: str) -> tuple[Deblurrer, WatchedBackend]:
    """A deblurrer on the backend called ``backend``, and what watches it.

    Raises:
        BackendError: if the backend cannot run here.
    """
    selection = select_backend(bundle, backend)
    watched = WatchedBackend(selection.backend, bundle.manifest)
    return Deblurrer(bundle, Selection(backend=watched, passed_over=selection.passed_over)), watched
