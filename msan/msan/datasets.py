"""Training samples: random crops of sharp pictures, and the same crops motion-blurred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msan.blur import BlurSpec, blur_along, random_trajectories
from msan_runtime.errors import MsanError, PictureError
from msan_runtime.image import find_pictures, read_picture

__all__ = ["BlurredCrops", "DatasetError", "load_pictures", "picture_files"]


class DatasetError(MsanError):
    """A folder of training pictures that cannot be trained on."""


def picture_files(folder: Path) -> list[Path]:
    """Every picture file under ``folder``, sorted by its path in it.

    Raises:
        DatasetError: if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"no folder of pictures at {folder}")
    files = find_pictures(folder)
    if not files:
        raise DatasetError(f"no JPEG, PNG, WebP or TIFF picture under {folder}")
    return files


def load_pictures(files: Sequence[Path], *, long_side_px: int, short_side_px: int) -> list[Tensor]:
    """Decode pictures to uint8 3×H×W tensors, shrunk to ``long_side_px`` at most.

    Shrinking a photograph makes it sharper to the pixel. Pictures whose shorter side is then
    under ``short_side_px`` are left out.

    Raises:
        DatasetError: for a picture that cannot be decoded, or if none is large enough.
    """
    pictures = [_load(file, long_side_px) for file in files]
    large = [p for p in pictures if min(p.shape[1:]) >= short_side_px]
    if not large:
        raise DatasetError(f"none of {len(files)} pictures has a side of {short_side_px} px or more")
    return large


def _load(file: Path, long_side_px: int) -> Tensor:
    try:
        pixels = read_picture(file).pixels
    except PictureError as error:
        raise DatasetError(f"{error}. Remove it or replace it") from error
    rgb = Image.fromarray(pixels)
    rgb.thumbnail((long_side_px, long_side_px), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, kw_only=True)
class BlurredCrops:
    """A source of (blurred, sharp) batches, each a function of (seed, step) alone.

    Attributes:
        pictures: uint8 3×H×W sharp pictures.
        crop_px: side of the square crops.
        batch: crops in a batch.
        blur: what blur to draw.
        seed: of everything random.
        tries: crops looked at for each that is taken: the one with the most gradient energy
            (wallpapers are mostly sky).
    """

    pictures: Sequence[Tensor]
    crop_px: int
    batch: int
    blur: BlurSpec
    seed: int
    tries: int = 3

    @property
    def margin_px(self) -> int:
        """Border around a crop that its blur may look into."""
        return math.ceil(0.75 * self.blur.length_px[1] + 2 * self.blur.roll_px) + 1

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """The (blurred, sharp) batch of training step ``step``: float32 N×3×crop×crop in [0, 1].

        The blurred picture is rounded to 8 bits, as a file would be. Both are flipped and turned alike.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn = [self._draw(generator) for _ in range(self.batch)]
        crops = torch.stack([crop for crop, _ in drawn]).float() / 255
        offsets = torch.tensor([offset for _, offset in drawn])
        trajectories = random_trajectories(self.batch, self.blur, generator)
        blurred = blur_along(crops, trajectories, margin_px=self.margin_px, offset_px=offsets)
        levels = self.blur.noise_levels * torch.rand((self.batch, 1, 1, 1), generator=generator)
        noise = torch.randn(blurred.shape, generator=generator) * levels / 255
        blurred = ((blurred + noise).clamp(0, 1) * 255).round() / 255
        m = self.margin_px
        sharp = crops[:, :, m:-m, m:-m]
        return _turned(blurred, sharp, generator)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, tuple[float, float]]:
        candidates = [self._candidate(generator) for _ in range(self.tries)]
        return max(candidates, key=lambda candidate: gradient_energy(candidate[0]))

    def _candidate(self, generator: torch.Generator) -> tuple[Tensor, tuple[float, float]]:
        """A random crop with its margin, and its (down, right) offset from the picture's centre."""
        picture = self.pictures[_randint(len(self.pictures), generator)]
        side = self.crop_px + 2 * self.margin_px
        height, width = picture.shape[1:]
        top = _randint(height - side + 1, generator)
        left = _randint(width - side + 1, generator)
        offset = (top + side / 2 - height / 2, left + side / 2 - width / 2)
        return picture[:, top : top + side, left : left + side], offset


def gradient_energy(picture: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels of a uint8 3×H×W picture's green, in levels."""
    green = picture[1].to(torch.int16)
    return float(green.diff(dim=0).abs().float().mean() + green.diff(dim=1).abs().float().mean())


def _turned(blurred: Tensor, sharp: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random flips and quarter turns for each pair of a batch."""
    both = torch.cat((blurred, sharp), 1)
    turned: list[Tensor] = []
    for pair in both:
        turns = _randint(4, generator)
        pair = torch.rot90(pair, turns, (1, 2))
        turned.append(pair.flip(2) if _randint(2, generator) else pair)
    stacked = torch.stack(turned)
    return stacked[:, :3].contiguous(), stacked[:, 3:].contiguous()


def _randint(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (1,), generator=generator))
