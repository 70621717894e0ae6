"""The reference of an acceptance test: the network of the checkpoint in PyTorch, not the module that was exported."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from msan_export.acceptance.verdict import Case
from msan_export.source import Source, computed, reference_module
from msan_runtime.attention import Attention
from msan_runtime.backends.base import Backend, TileLimits, check_tiles
from msan_runtime.contract import OUTPUT_NAME, PictureArray, pad_to, round_up
from msan_runtime.tiling import TiledRunner

__all__ = ["FLOAT_NAME", "Reference", "ReferenceType", "padded", "stage_name"]

FLOAT_NAME = "deblurred_float"
"""Name under which the picture before rounding is compared: from 0 to 1, N×H×W×3."""

ReferenceType = Literal["float32", "float64"]


def stage_name(stage: int) -> str:
    """Name of the output of sub-network ``stage``, counted from 1: N×3×H×W, to be added to the blurred picture."""
    return f"d{stage}"


def padded(picture: PictureArray) -> PictureArray:
    """(1, height, width, 3) with sides that are multiples of 8."""
    height, width = picture.shape[:2]
    return np.ascontiguousarray(pad_to(picture, round_up(height), round_up(width))[None])


class Reference:
    """The network in PyTorch on the CPU.

    Attributes:
        network: in ``kind``.
        attention: of it.
        kind: of weights and arithmetic.
        words: for people.
    """

    def __init__(self, checkpoint: Source, attention: Attention, kind: ReferenceType = "float32") -> None:
        # A copy: a network of another maker is the caller's own.
        self.network = copy.deepcopy(reference_module(checkpoint, attention)).to(getattr(torch, kind))
        self.attention = attention
        self.kind: ReferenceType = kind
        self.words = f"PyTorch {torch.__version__} {kind} on the CPU"
        self._tiled: dict[object, PictureArray] = {}

    def outputs(self, batch: PictureArray) -> Mapping[str, npt.NDArray[Any]]:
        """Every sub-network's output, the picture before rounding, and the picture, of uint8 N×H×W×3."""
        blurred = torch.from_numpy(batch).permute(0, 3, 1, 2).to(getattr(torch, self.kind)) / 255
        with torch.inference_mode():
            stages, picture = computed(self.network, blurred)
            picture = picture.clamp(0, 1).permute(0, 2, 3, 1).contiguous()
            levels = (picture * 255).round().to(torch.uint8)
        named = {stage_name(index): stage.numpy() for index, stage in enumerate(stages, 1)}
        return {**named, FLOAT_NAME: picture.numpy(), OUTPUT_NAME: levels.numpy()}

    def tiled(self, case: Case, limits: TileLimits, *, keep: bool = True) -> PictureArray:
        """The picture of ``case``, cut and blended as the runtime does it on a backend of these limits.

        ``keep`` remembers it: backends mostly cut a picture alike.
        """
        runner = TiledRunner(_TorchBackend(self, limits), tile=case.tile)
        key = (case.name, runner.plan(*case.picture.shape[:2]))
        if key in self._tiled:
            return self._tiled[key]
        (picture,) = runner.run((case.picture,))
        if keep:
            self._tiled[key] = picture
        return picture


class _TorchBackend(Backend):
    """The reference where the runtime expects a backend."""

    name = "pytorch"

    def __init__(self, reference: Reference, limits: TileLimits) -> None:
        self.device = reference.words
        self.limits = limits
        self._reference = reference

    def infer(self, tiles: PictureArray) -> PictureArray:
        check_tiles(tiles, self.limits)
        return self._reference.outputs(tiles)[OUTPUT_NAME]
