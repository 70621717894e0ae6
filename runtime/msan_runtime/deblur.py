"""Deblurrer: the public door of the runtime. Arrays in, arrays out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle, open_bundle
from msan_runtime.contract import PictureArray, check_picture
from msan_runtime.errors import ContractError
from msan_runtime.select import Selection, open_float_backend, select_backend
from msan_runtime.tiling import Batch, TiledRunner, TileListener

__all__ = ["Deblurrer"]

Level = TypeVar("Level", bound=np.uint8 | np.uint16 | np.float32)


class Deblurrer:
    """Deblurs pictures with one bundle on one backend.

    A context manager. It keeps no global state, but one instance, and each stream of it, belongs to one
    thread at a time: threads that share it must take turns under a lock of theirs, and a stream must be
    at its end, or closed, before the next call. Several instances may run in several threads.

    Attributes:
        bundle: what was loaded.
        backend: what runs it on 8-bit pictures.
        passed_over: why each faster backend is not used, in words.
    """

    def __init__(
        self,
        bundle: Bundle,
        selection: Selection,
        *,
        tile: tuple[int, int] | None = None,
        overlap_px: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Run ``bundle`` on the backend of ``selection``; the rest as in :meth:`load`."""
        self.bundle = bundle
        self.backend: Backend = selection.backend
        self.passed_over = selection.passed_over
        self._tile = tile
        self._overlap_px = overlap_px
        self._memory_bytes = memory_bytes
        self._runner = TiledRunner(self.backend, tile=tile, overlap_px=overlap_px)
        self._float_runner: TiledRunner | None = self._runner if self.backend.io == "float32" else None

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        backend: str = "auto",
        *,
        tile: tuple[int, int] | None = None,
        overlap_px: int | None = None,
        memory_bytes: int | None = None,
        rebuild: bool = True,
        public_key: Path | None = None,
    ) -> Self:
        """Load a bundle.

        Args:
            bundle: a bundle's folder or the name of a shipped one; the shipped ``msan-s`` if left out.
            backend: ``auto`` (the fastest that works here) or one of ``msan_runtime.select.BACKENDS``;
                a name means that one or an error.
            tile: (height, width) of the tiles that larger pictures are cut into, rounded up to multiples
                of 8. If left out, a picture is one tile where it fits, and otherwise cut in the cheapest way.
            overlap_px: least overlap of neighbouring tiles; see docs/tiles.md for the default.
            memory_bytes: what one run of the network may take beside the process, the weights and the
                pictures. If left out, 1 GiB, and for a native engine what its largest tile takes.
            rebuild: whether an engine that does not fit this machine's GPU, driver and TensorRT is built again from
                the bundle's graph. That takes seconds, here and never while pictures run, and is kept for the next
                time.
            public_key: PEM file of an Ed25519 key; a bundle that was not signed with it is then refused.

        Raises:
            SignatureError: if the bundle was not signed with ``public_key``.
            BundleError: if the bundle is missing, damaged or of an unknown schema.
            BackendError: if the backend cannot run here, or not in so little memory.
            ContractError: if the backend does not take such tiles, or they cannot overlap so much.
        """
        opened = open_bundle(bundle, public_key=public_key)
        selection = select_backend(opened, backend, memory_bytes=memory_bytes, rebuild=rebuild)
        try:
            return cls(opened, selection, tile=tile, overlap_px=overlap_px, memory_bytes=memory_bytes)
        except BaseException:
            selection.backend.close()
            raise

    def deblur(self, picture: npt.NDArray[Level]) -> npt.NDArray[Level]:
        """Deblur a picture of any size.

        Where the device's memory does not suffice, it is done in smaller tiles, which is logged.

        Args:
            picture: (height, width, 3), sRGB, 1×1 or larger. Not changed. ``uint8``; or ``uint16``, or
                ``float32`` from 0 to 1, which go through the bundle's graph of float pictures.

        Returns:
            A new array of the same shape and type.

        Raises:
            ContractError: for anything else than such an array.
            BundleError: for uint16 or float32, if the bundle has no graph of float pictures.
            OutOfMemoryError: if not even small tiles fit the device's memory.
            BackendError: if the device fails.
        """
        (deblurred,) = self.stream((picture,))
        return deblurred

    def stream(
        self, pictures: Iterable[npt.NDArray[Level]], on_tile: TileListener | None = None
    ) -> Iterator[npt.NDArray[Level]]:
        """:meth:`deblur` for each picture, lazily and in order.

        Pictures in a row of one size and type are passed to the device without a pause between them:
        up to a few are then taken from ``pictures`` before the first result comes.

        Args:
            pictures: taken lazily.
            on_tile: called before each tile of a picture is taken, in the thread that iterates, with how many
                were taken before and how many the picture has. What it raises ends the stream and comes through.

        Raises:
            As :meth:`deblur`; what ``pictures`` raises comes through.
        """
        for _, alike in itertools.groupby(map(_checked, pictures), key=_kind):
            yield from self._run(alike, on_tile)

    def batch(self, picture: PictureArray) -> Batch:
        """Which pictures ``picture`` may run together with, by :meth:`deblur_batch`; uint8 pictures alone do.

        Raises:
            ContractError: for what is no picture.
        """
        check_picture(picture)
        if picture.dtype != np.uint8:
            return Batch(tile=(0, 0), size=1)
        return self._runner.batch(*picture.shape[:2])

    def deblur_batch(self, pictures: Sequence[PictureArray]) -> list[PictureArray]:
        """:meth:`deblur` for each of a few small pictures, in one run of the network.

        Args:
            pictures: (height, width, 3) uint8 each, with one ``batch(picture).tile``, and no more than its ``size``.

        Returns:
            What :meth:`deblur` gives for each.

        Raises:
            ContractError: for pictures that do not belong together.
            OutOfMemoryError, BackendError: as :meth:`deblur`.
        """
        batches = {self.batch(picture) for picture in pictures}
        batch = batches.pop() if len(batches) == 1 else None
        if batch is None or len(pictures) > batch.size:
            shapes = sorted({picture.shape[:2] for picture in pictures})
            raise ContractError(f"{len(pictures)} pictures of {shapes} do not run together. Ask batch() which do")
        return self._runner.run_batch(pictures, batch.tile)

    def close(self) -> None:
        """Release the backends."""
        for runner in (self._runner, self._float_runner):
            if runner is not None:
                runner.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, alike: Iterator[npt.NDArray[Level]], on_tile: TileListener | None) -> Iterator[Any]:
        """Deblur pictures of one size and type."""
        first = next(alike)
        yield from self._runner_for(first).run(itertools.chain((first,), alike), on_tile)

    def _runner_for(self, picture: PictureArray) -> TiledRunner:
        """What runs pictures of that type; the float backend is opened by the first that needs it."""
        if picture.dtype == np.uint8:
            return self._runner
        if self._float_runner is None:
            backend = open_float_backend(self.bundle, self.backend.name, memory_bytes=self._memory_bytes)
            self._float_runner = TiledRunner(backend, tile=self._tile, overlap_px=self._overlap_px)
        return self._float_runner


def _checked(picture: npt.NDArray[Level]) -> npt.NDArray[Level]:
    check_picture(picture)
    return picture


def _kind(picture: PictureArray) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return picture.shape, picture.dtype
