"""Validation while training: PSNR on centre crops of pictures that are not trained on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from msan.data.pictures import PairPictures, SharpPictures
from msan.data.readers import Pair
from msan.degradation.degrade import degrade, margin_px
from msan.evaluation.metrics import psnr_db
from msan.training.recipe import TrainConfig
from msan_runtime.errors import MsanError

__all__ = ["ValidationResult", "ValidationSet", "open_validation"]

T = TypeVar("T")

PICTURES_MAX = 32
"""Pictures of each kind that are validated on, spread evenly over those held back."""


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Mean PSNR in dB over the validation pictures, of the blurred input and of the network's output on uint8.

    Attributes:
        example: blurred, deblurred and sharp crop side by side, uint8 3×S×3S.
    """

    blurred_db: float
    deblurred_db: float
    example: Tensor

    @property
    def gain_db(self) -> float:
        return self.deblurred_db - self.blurred_db


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Blurred and sharp crops, uint8 3×S×S each."""

    crops: Sequence[tuple[Tensor, Tensor]]

    def score(self, network: nn.Module, device: torch.device) -> ValidationResult:
        """Deblur every crop with ``network``, one by one, in FP32."""
        was_training = network.training
        network.eval()
        deblurred = [_deblurred(network, blurred, device) for blurred, _ in self.crops]
        network.train(was_training)
        return ValidationResult(
            blurred_db=statistics.fmean(_psnr_db(blurred, sharp) for blurred, sharp in self.crops),
            deblurred_db=statistics.fmean(_psnr_db(d, s) for d, (_, s) in zip(deblurred, self.crops, strict=True)),
            example=torch.cat((self.crops[0][0], deblurred[0], self.crops[0][1]), 2),
        )


def open_validation(
    files: Sequence[Path],
    pairs: Sequence[Pair],
    config: TrainConfig,
    announce: Callable[[str], None],
    *,
    skip_bad: bool = False,
) -> ValidationSet | None:
    """Centre crops of held-back pairs and of held-back sharp pictures, blurred with fixed seeds; ``None`` if none.

    Pictures too small for a crop of 64 px are left out, and ``announce`` hears how many.

    Raises:
        MsanError: for a picture that cannot be decoded; with ``skip_bad``, ``announce`` hears of it instead.
    """
    paired = PairPictures(pairs=_spread(pairs))
    sharp = SharpPictures(files=_spread(files), long_side_px=config.long_side_px)
    crops: list[tuple[Tensor, Tensor] | None] = []
    for source in (paired, sharp):
        for index in range(len(source.names)):
            try:
                crops.append(_crop(source, index, config))
            except MsanError as error:
                if not skip_bad:
                    raise
                announce(f"skipped: {error}")
    if None in crops:
        announce(f"{crops.count(None)} validation pictures left out: they are too small")
    large = [crop for crop in crops if crop is not None]
    return ValidationSet(crops=large) if large else None


def _crop(source: PairPictures | SharpPictures, index: int, config: TrainConfig) -> tuple[Tensor, Tensor] | None:
    """Blurred and sharp centre crop of a picture; ``None`` if it is too small."""
    *blurred, sharp = source.load(index)
    margin = 0 if blurred else margin_px(config.blur)
    side = _side_px(sharp, margin, config)
    if not side:
        return None
    if blurred:
        return _centre(blurred[0], side), _centre(sharp, side)
    made = degrade(_centre(sharp, side + 2 * margin)[None], [index], config.blur, margin_px=margin)[0]
    return (made * 255).round().to(torch.uint8), _centre(sharp, side)


def _side_px(picture: Tensor, margin: int, config: TrainConfig) -> int:
    """Side of the largest crop that there is room for, up to ``validation_px``; 0 if under 64 px."""
    side = min(config.validation_px, (min(picture.shape[1:]) - 2 * margin) // 8 * 8)
    return side if side >= min(64, config.crop_px) else 0


def _centre(picture: Tensor, side_px: int) -> Tensor:
    top, left = ((length - side_px) // 2 for length in picture.shape[1:])
    return picture[:, top : top + side_px, left : left + side_px]


def _deblurred(network: nn.Module, blurred: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(blurred[None].to(device).float() / 255)
    return (output[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _psnr_db(picture: Tensor, sharp: Tensor) -> float:
    """PSNR of two uint8 pictures in dB; 100 at most, so that a mean stays a number."""
    return min(100.0, psnr_db(picture.numpy(), sharp.numpy()))


def _spread(items: Sequence[T]) -> list[T]:
    stride = max(1, -(-len(items) // PICTURES_MAX))
    return list(items[::stride])
