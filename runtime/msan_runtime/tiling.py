"""Pictures of any size on one backend: cut into tiles, run, blended; in smaller tiles once memory runs out."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from msan_runtime.backends.base import Backend
from msan_runtime.blend import TileBlender
from msan_runtime.contract import PictureArray, pad_to, pixels_from_tiles, round_up, tiles_from_pixels
from msan_runtime.errors import BackendError, ContractError, OutOfMemoryError
from msan_runtime.memory import LEAST_TILE_PX
from msan_runtime.tiles import DEFAULT_OVERLAP_PX, Region, TilePlan, plan_fixed_tiles, plan_tiles

__all__ = ["Batch", "TileListener", "TiledRunner"]

TileListener = Callable[[int, int], None]
"""Told how many tiles of a picture were taken, and how many it has."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What a picture may run together with.

    Attributes:
        tile: (height, width) that the picture is padded to: those of one batch have the same.
        size: how many run faster together than one by one; 1 if none do, or the picture has several tiles.
    """

    tile: tuple[int, int]
    size: int


class TiledRunner:
    """Runs a backend on pictures of any size.

    Attributes:
        backend: what runs the tiles.
        limits: of the tiles that are cut: the backend's, lowered each time its memory did not suffice.
    """

    def __init__(self, backend: Backend, *, tile: tuple[int, int] | None = None, overlap_px: int | None = None) -> None:
        """Run on ``backend``.

        Args:
            backend: it stays the caller's to close.
            tile: (height, width) of tiles, rounded up to multiples of 8; planned for each picture if left out.
            overlap_px: least overlap of neighbours; ``DEFAULT_OVERLAP_PX`` if left out.

        Raises:
            ContractError: if the backend does not take such tiles, or they cannot overlap so much.
        """
        self.backend = backend
        self.limits = backend.limits
        self._overlap_px = DEFAULT_OVERLAP_PX if overlap_px is None else overlap_px
        self._tile: tuple[int, int] | None = None
        self._batches = True
        if self._overlap_px < 0:
            raise ContractError(f"tiles cannot overlap by {overlap_px} px: give 0 or more")
        if tile is not None:
            self._tile = (round_up(tile[0]), round_up(tile[1]))
            plan_fixed_tiles(*self._tile, self._tile, self.limits, overlap_px=self._overlap_px)

    def plan(self, height: int, width: int) -> TilePlan:
        """The tiles of a picture of that size."""
        if self._tile is None:
            return plan_tiles(height, width, self.limits, overlap_px=self._overlap_px)
        return plan_fixed_tiles(height, width, self._tile, self.limits, overlap_px=self._overlap_px)

    def run(self, pictures: Iterable[PictureArray], on_tile: TileListener | None = None) -> Iterator[PictureArray]:
        """Deblur checked pictures of one shape and type, lazily and in order.

        Args:
            pictures: taken lazily.
            on_tile: called before each tile is taken, in the thread that iterates; what it raises ends the run.

        Raises:
            OutOfMemoryError: if not even the smallest tiles fit the device.
            BackendError: if the device fails.
        """
        waiting = _Waiting(pictures)
        while True:
            try:
                yield from self._pass(waiting, on_tile)
                return
            except OutOfMemoryError as error:
                if error is waiting.failure:
                    raise
                self._shrink(waiting, error)

    def batch(self, height: int, width: int) -> Batch:
        """How pictures of that size may run together with others."""
        plan = self.plan(height, width)
        most = self.backend.batch_size(*plan.tile) if self._batches and len(plan) == 1 else 1
        return Batch(tile=plan.tile, size=max(min(most, self.limits.area_px // math.prod(plan.tile)), 1))

    def run_batch(self, pictures: Sequence[PictureArray], tile: tuple[int, int]) -> list[PictureArray]:
        """Deblur checked pictures of one type, whose :class:`Batch` has that ``tile``, in one run of the network.

        A backend that cannot do so does them one by one, from then on.

        Raises:
            OutOfMemoryError, BackendError: as :meth:`run`.
        """
        tiles = np.stack([pad_to(picture, *tile) for picture in pictures])
        try:
            outputs = self.backend.infer(tiles_from_pixels(tiles, self.backend.io))
        except BackendError as error:
            logger.warning("%s runs small pictures one by one from now on: %s", self.backend.name, error)
            self._batches = False
            return [deblurred for picture in pictures for deblurred in self.run((picture,))]
        pairs = zip(outputs, pictures, strict=True)
        return [
            pixels_from_tiles(output[: picture.shape[0], : picture.shape[1]], picture.dtype)
            for output, picture in pairs
        ]

    def _pass(self, waiting: _Waiting, on_tile: TileListener | None) -> Iterator[PictureArray]:
        """Deblur what waits and what comes after it, until the end or until memory runs out."""
        outputs = self.backend.infer_many(self._cut(waiting, on_tile))
        for first in outputs:
            picture = waiting.taken[0]
            plan = self.plan(*picture.shape[:2])
            deblurred = _assembled(itertools.chain((first,), outputs), plan, picture)
            waiting.taken.popleft()
            yield deblurred

    def _cut(self, waiting: _Waiting, on_tile: TileListener | None) -> Iterator[PictureArray]:
        """The tiles of all pictures, each 1×H×W×3, contiguous, of what the backend takes."""
        for picture in waiting:
            plan = self.plan(*picture.shape[:2])
            for taken, region in enumerate(plan.regions()):
                if on_tile is not None:
                    on_tile(taken, len(plan))
                yield tiles_from_pixels(_tile(picture, region), self.backend.io)

    def _shrink(self, waiting: _Waiting, error: OutOfMemoryError) -> None:
        """Halve the area of the tiles that were too large, for this picture and all later ones."""
        plan = self.plan(*waiting.taken[0].shape[:2])
        height, width = plan.tile
        area_px = height * width // 2
        if area_px < max(LEAST_TILE_PX, math.prod(self.limits.smallest)):
            raise OutOfMemoryError(
                f"{self.backend.name} has too little memory even for tiles of {height}×{width} px ({error}). "
                "Close other programs, or choose another backend"
            ) from error
        logger.warning(
            "%s ran out of memory on tiles of %d×%d px: going on with tiles of half that area (%s)",
            self.backend.name,
            height,
            width,
            error,
        )
        self._tile = None
        self.limits = dataclasses.replace(self.limits, area_px=area_px)


class _Waiting:
    """Pictures taken from an iterable whose results are not out yet: they can be gone through again."""

    def __init__(self, pictures: Iterable[PictureArray]) -> None:
        self.taken: deque[PictureArray] = deque()
        self.failure: Exception | None = None
        self._pictures = iter(pictures)

    def __iter__(self) -> Iterator[PictureArray]:
        yield from tuple(self.taken)
        while (picture := self._next()) is not None:
            self.taken.append(picture)
            yield picture

    def _next(self) -> PictureArray | None:
        try:
            return next(self._pictures, None)
        except Exception as error:
            self.failure = error  # the caller's own, whatever its type: not a failure of the backend
            raise


def _tile(picture: PictureArray, region: Region) -> PictureArray:
    """A tile of the picture, 1×H×W×3; at the lower and right border its edge is repeated."""
    cut = picture[region.slices]
    return np.ascontiguousarray(pad_to(cut, region.height, region.width)[None])


def _assembled(outputs: Iterator[PictureArray], plan: TilePlan, picture: PictureArray) -> PictureArray:
    """The deblurred picture from as many outputs as the plan has tiles."""
    height, width = picture.shape[:2]
    dtype: np.dtype[np.uint8 | np.uint16 | np.float32] = picture.dtype
    if len(plan) == 1:
        return pixels_from_tiles(next(outputs)[0, :height, :width], dtype)
    blender = TileBlender(plan, height, width, dtype)
    for index, tile in enumerate(itertools.islice(outputs, len(plan))):
        blender.add(*divmod(index, len(plan.lefts)), tile[0])
    return blender.picture
