"""Training samples: crops of sharp pictures to be blurred and of real pairs, each a function of seed and index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from msan.data.pictures import Fetched, PictureStore
from msan.degradation.degrade import degrade, margin_px
from msan.training.recipe import TrainConfig

__all__ = ["Batch", "Sample", "SampleSet", "collate", "gradient_energy", "tensors_from_batch"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample, before blur and augmentation.

    Attributes:
        index: of the sample in the whole training.
        name: of its picture.
        sharp: uint8 3×S×S; with a margin for the blur to look into where ``blurred`` is to be made.
        blurred: uint8 of the same shape, or ``None`` where it is made from ``sharp``.
        offset_px: (down, right) from the picture's centre to the crop's.
        turns: quarter turns of the finished sample.
        flip: whether it is mirrored after them.
        bad: pictures that could not be decoded on the way, name to reason.
    """

    index: int
    name: str
    sharp: Tensor
    blurred: Tensor | None
    offset_px: tuple[float, float] = (0.0, 0.0)
    turns: int = 0
    flip: bool = False
    bad: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of a step, still in the data loader's memory: real pairs and crops to be blurred."""

    paired: Sequence[Sample]
    synthetic: Sequence[Sample]

    @property
    def names(self) -> list[str]:
        """Names of the pictures."""
        return [sample.name for sample in (*self.paired, *self.synthetic)]

    @property
    def bad(self) -> dict[str, str]:
        """Pictures that could not be decoded, name to reason."""
        return {name: why for sample in (*self.paired, *self.synthetic) for name, why in sample.bad.items()}


class SampleSet(Dataset[Sample]):
    """Samples by their index in the whole training, from sharp pictures, real pairs, or both.

    Each source is gone through in a new order each epoch. Where both are given, every sample's kind
    follows from its index, in the proportion ``config.pair_share``.
    """

    def __init__(self, config: TrainConfig, *, sharp: PictureStore | None, pairs: PictureStore | None) -> None:
        self.config = config
        self.sharp = sharp
        self.pairs = pairs
        self.margin_px = margin_px(config.blur)
        self.pair_share = _pair_share(config, sharp, pairs)

    @property
    def pictures(self) -> int:
        """Pictures of all sources: as many samples make an epoch."""
        return len(self.sharp or ()) + len(self.pairs or ())

    def fingerprint(self) -> str:
        """Which pictures they are: eight hexadecimal digits each."""
        return "".join(store.fingerprint() for store in (self.sharp, self.pairs) if store is not None)

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(_seed(self.config.seed, index))
        before = _pairs_before(index, self.pair_share)
        if self.pairs is not None and _pairs_before(index + 1, self.pair_share) > before:
            return self._paired(index, _fetched(self.pairs, before, self.config.seed), generator)
        assert self.sharp is not None
        fetched = _fetched(self.sharp, index - before, self.config.seed + 1)
        return self._synthetic(index, fetched, generator)

    def _paired(self, index: int, fetched: Fetched, generator: torch.Generator) -> Sample:
        blurred, sharp = fetched.pictures
        top, left = self._place(sharp, self.config.crop_px, generator)
        assert self.pairs is not None
        return Sample(
            index=index,
            name=self.pairs.names[fetched.index],
            sharp=_cut(sharp, top, left, self.config.crop_px),
            blurred=_cut(blurred, top, left, self.config.crop_px),
            turns=_randint(4, generator),
            flip=bool(_randint(2, generator)),
            bad=fetched.bad,
        )

    def _synthetic(self, index: int, fetched: Fetched, generator: torch.Generator) -> Sample:
        assert self.sharp is not None
        name = self.sharp.names[fetched.index]
        if float(torch.rand((), generator=generator)) < self.config.flat_share:
            flat = _flat(self.config.crop_px, generator)
            return Sample(index=index, name="flat colour", sharp=flat, blurred=flat, bad=fetched.bad)
        (sharp,) = fetched.pictures
        side = self.config.crop_px + 2 * self.margin_px
        top, left = self._place(sharp, side, generator)
        return Sample(
            index=index,
            name=name,
            sharp=_cut(sharp, top, left, side),
            blurred=None,
            offset_px=(top + side / 2 - sharp.shape[1] / 2, left + side / 2 - sharp.shape[2] / 2),
            turns=_randint(4, generator),
            flip=bool(_randint(2, generator)),
            bad=fetched.bad,
        )

    def _place(self, picture: Tensor, side_px: int, generator: torch.Generator) -> tuple[int, int]:
        """Top left corner of the random crop with the most gradient energy out of ``config.candidates``."""
        height, width = picture.shape[1:]
        places = [
            (_randint(height - side_px + 1, generator), _randint(width - side_px + 1, generator))
            for _ in range(self.config.candidates)
        ]
        if len(places) == 1:
            return places[0]
        return max(places, key=lambda place: gradient_energy(_cut(picture, *place, side_px)))


def collate(samples: Sequence[Sample]) -> Batch:
    """The samples of a step by their kind; the data loader's ``collate_fn``."""
    return Batch(
        paired=[sample for sample in samples if sample.blurred is not None],
        synthetic=[sample for sample in samples if sample.blurred is None],
    )


def tensors_from_batch(batch: Batch, config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The (blurred, sharp) tensors to train on: float32 N×3×crop×crop in [0, 1], blur made on ``device``."""
    parts: list[tuple[Tensor, Tensor]] = []
    if batch.paired:
        blurred = torch.stack([_blurred(sample) for sample in batch.paired]).to(device, non_blocking=True)
        sharp = torch.stack([sample.sharp for sample in batch.paired]).to(device, non_blocking=True)
        parts.append((blurred.float() / 255, sharp.float() / 255))
    if batch.synthetic:
        parts.append(_made(batch.synthetic, config, device))
    samples = (*batch.paired, *batch.synthetic)
    blurred = torch.cat([part[0] for part in parts])
    sharp = torch.cat([part[1] for part in parts])
    return _turned(blurred, samples), _turned(sharp, samples)


def gradient_energy(picture: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels of a uint8 3×H×W picture's green, in levels."""
    green = picture[1].to(torch.int16)
    return float(green.diff(dim=0).abs().float().mean() + green.diff(dim=1).abs().float().mean())


def _made(samples: Sequence[Sample], config: TrainConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    margin = margin_px(config.blur)
    crops = torch.stack([sample.sharp for sample in samples]).to(device, non_blocking=True)
    seeds = [_seed(config.seed, sample.index) for sample in samples]
    offsets = torch.tensor([sample.offset_px for sample in samples])
    blurred = degrade(crops, seeds, config.blur, margin_px=margin, offset_px=offsets)
    side = crops.shape[-1]
    return blurred, crops[:, :, margin : side - margin, margin : side - margin].float() / 255


def _pair_share(config: TrainConfig, sharp: PictureStore | None, pairs: PictureStore | None) -> Fraction:
    """Exact, so that an epoch has each picture once."""
    if sharp is None or pairs is None:
        return Fraction(pairs is not None)
    if config.pair_share is None:
        return Fraction(len(pairs), len(pairs) + len(sharp))
    return Fraction(str(config.pair_share))


def _pairs_before(index: int, share: Fraction) -> int:
    """How many of the samples before ``index`` are real pairs."""
    return index * share.numerator // share.denominator


def _fetched(store: PictureStore, position: int, seed: int) -> Fetched:
    epoch, place = divmod(position, len(store))
    return store.fetch(_order(len(store), seed, epoch)[place])


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(_seed(seed, -1 - epoch))
    return torch.randperm(count, generator=generator).tolist()


def _seed(seed: int, index: int) -> int:
    return (seed * 1_000_003 + index) % (1 << 63)


def _flat(side_px: int, generator: torch.Generator) -> Tensor:
    """One colour, grey half of the time."""
    colour = torch.randint(256, (3, 1, 1), generator=generator, dtype=torch.uint8)
    colour = colour[:1].expand(3, 1, 1) if _randint(2, generator) else colour
    return colour.expand(3, side_px, side_px).contiguous()


def _blurred(sample: Sample) -> Tensor:
    assert sample.blurred is not None
    return sample.blurred


def _cut(picture: Tensor, top: int, left: int, side_px: int) -> Tensor:
    return picture[:, top : top + side_px, left : left + side_px]


def _turned(pictures: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Each picture flipped and turned as its sample says."""
    turned = [torch.rot90(p, s.turns, (1, 2)) for p, s in zip(pictures, samples, strict=True)]
    return torch.stack([p.flip(2) if s.flip else p for p, s in zip(turned, samples, strict=True)])


def _randint(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (1,), generator=generator))
