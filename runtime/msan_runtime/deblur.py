"""Deblurrer: the public door of the runtime. Arrays in, arrays out."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from msan_runtime.backends.base import Backend
from msan_runtime.blend import TileBlender
from msan_runtime.bundle import Bundle, open_bundle
from msan_runtime.contract import PictureArray, check_picture, pad_to
from msan_runtime.select import Selection, select_backend
from msan_runtime.tiles import TilePlan, plan_tiles

__all__ = ["Deblurrer"]


class Deblurrer:
    """Deblurs pictures with one bundle on one backend.

    A context manager; one instance belongs to one thread at a time.

    Attributes:
        bundle: what was loaded.
        backend: what runs it.
        passed_over: why each faster backend is not used, in words.
    """

    def __init__(self, bundle: Bundle, selection: Selection) -> None:
        self.bundle = bundle
        self.backend: Backend = selection.backend
        self.passed_over = selection.passed_over

    @classmethod
    def load(cls, bundle: str | Path | None = None, backend: str = "auto") -> Self:
        """Load a bundle.

        Args:
            bundle: a bundle's folder or the name of a shipped one; the shipped ``msan-s`` if left out.
            backend: ``auto`` (the fastest that works here), ``rtx``, ``tensorrt``, ``ort-cuda`` or
                ``ort-cpu``; a name means that one or an error.

        Raises:
            BundleError: if the bundle is missing, damaged or of an unknown schema.
            BackendError: if the backend cannot run here.
        """
        opened = open_bundle(bundle)
        return cls(opened, select_backend(opened, backend))

    def deblur(self, picture: PictureArray) -> PictureArray:
        """Deblur a picture of any size.

        Args:
            picture: uint8 of shape (height, width, 3), sRGB, 1×1 or larger. Not changed.

        Returns:
            A new array of the same shape and type.

        Raises:
            ContractError: for anything else than such an array.
            BackendError: if the device fails.
        """
        check_picture(picture)
        height, width = picture.shape[:2]
        plan = plan_tiles(height, width, self.backend.limits)
        padded = pad_to(picture, *plan.padded)
        if len(plan) == 1:
            return self.backend.infer(np.ascontiguousarray(padded[None]))[0, :height, :width]
        return self._deblur_tiles(padded, plan, height, width)

    def _deblur_tiles(self, padded: PictureArray, plan: TilePlan, height: int, width: int) -> PictureArray:
        blender = TileBlender(plan, height, width)
        for index, region in enumerate(plan.regions()):
            tile = np.ascontiguousarray(padded[region.slices][None])
            row, column = divmod(index, len(plan.lefts))
            blender.add(row, column, self.backend.infer(tile)[0])
        return blender.picture

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
