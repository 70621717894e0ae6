"""Networks that are not MSAN, with random weights: a plain U-Net, one of NAFNet's form, and small ones that are odd."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

__all__ = [
    "Branching",
    "Doubling",
    "Failing",
    "Levels",
    "NafNet",
    "Normalised",
    "OneSize",
    "UNet",
    "Unshuffled",
    "branching",
    "doubling",
    "ending",
    "failing",
    "levels",
    "nafnet",
    "not_a_module",
    "unet",
]


class UNet(nn.Module):
    """Two halvings, joined by concatenation, batch normalisation, a residual picture. Says nothing of its multiple."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = _convolved(3, width)
        self.second = _convolved(width, 2 * width)
        self.third = _convolved(2 * width, 4 * width)
        self.up_second = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join_second = _convolved(4 * width, 2 * width)
        self.up_first = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join_first = _convolved(2 * width, width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, picture: Tensor) -> Tensor:
        full = self.first(picture)
        half = self.second(self.pool(full))
        quarter = self.third(self.pool(half))
        half = self.join_second(torch.cat((half, self.up_second(quarter)), 1))
        full = self.join_first(torch.cat((full, self.up_first(half)), 1))
        return picture + 0.1 * self.last(full)


def _convolved(given: int, made: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.LeakyReLU(0.1))


class ChannelNorm(nn.Module):
    """Layer normalisation over channels at each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * self.weight + self.bias


class GatedBlock(nn.Module):
    """NAFNet's block (Chen et al., ECCV 2022, Fig. 3d): gates in place of activations, channel attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        double = 2 * channels
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, double, 1)
        self.depthwise = nn.Conv2d(double, double, 3, padding=1, groups=double)
        self.attend = nn.Conv2d(channels, channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.mix1, self.mix2 = nn.Conv2d(channels, double, 1), nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.full((1, channels, 1, 1), 0.3))
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.depthwise(self.widen(self.norm1(x))).chunk(2, 1)
        gated = left * right
        x = x + self.beta * self.narrow(gated * self.attend(gated.mean((2, 3), keepdim=True)))
        left, right = self.mix1(self.norm2(x)).chunk(2, 1)
        return x + self.gamma * self.mix2(left * right)


class NafNet(nn.Module):
    """NAFNet's form (Fig. 2c): four halvings, so sides are multiples of 16; pixel shuffling, additive joints."""

    size_multiple = 16

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.intro, self.ending = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        widths = [width * 2**level for level in range(4)]
        self.encoders = nn.ModuleList(GatedBlock(channels) for channels in widths)
        self.downs = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, 2) for channels in widths)
        self.middle = GatedBlock(16 * width)
        self.ups = nn.ModuleList(_shuffled(2 * channels) for channels in reversed(widths))
        self.decoders = nn.ModuleList(GatedBlock(channels) for channels in reversed(widths))

    def forward(self, picture: Tensor) -> Tensor:
        x = self.intro(picture)
        kept: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            kept.append(encoder(x))
            x = down(kept[-1])
        x = self.middle(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + kept.pop())
        return picture + 0.1 * self.ending(x)


def _shuffled(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.PixelShuffle(2))


class Doubling(nn.Module):
    """Gives twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.wide(picture), 2)


class Unshuffled(nn.Module):
    """Takes sides that are multiples of ``factor`` alone, and says so if ``told``."""

    def __init__(self, factor: int, *, told: bool = True) -> None:
        super().__init__()
        if told:
            self.size_multiple = factor
        self.weight = nn.Parameter(torch.tensor(0.9))
        self.fold, self.unfold = nn.PixelUnshuffle(factor), nn.PixelShuffle(factor)

    def forward(self, picture: Tensor) -> Tensor:
        return self.unfold(self.fold(picture) * self.weight)


class Branching(Unshuffled):
    """Does one thing or the other, by what is in the picture."""

    def forward(self, picture: Tensor) -> Tensor:
        return super().forward(picture) if picture.mean() > 0.5 else picture


class Failing(Unshuffled):
    """Raises in its forward pass."""

    def forward(self, picture: Tensor) -> Tensor:
        raise RuntimeError(f"no weights for\n{picture.shape[1]} channels")


class OneSize(nn.Module):
    """Takes the size of picture that is tried first, and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 24, 40))

    def forward(self, picture: Tensor) -> Tensor:
        return picture * self.gain


class Normalised(nn.Module):
    """Normalises over the whole picture: what is in a tile alone changes what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3, affine=True)

    def forward(self, picture: Tensor) -> Tensor:
        return picture + 0.1 * self.norm(picture)


class Levels(nn.Module):
    """Works in 0 to 255 inside, as EDSR does, and beyond what FP16 holds: convolutions must stay FP32."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        levels = picture * 255
        made = self.middle(self.first(levels).relu()) * 1000
        return (levels + 1e-6 * self.last(made.relu())) / 255


def unet() -> UNet:
    return UNet()


def nafnet() -> NafNet:
    return NafNet()


def doubling() -> Doubling:
    return Doubling()


def branching() -> Branching:
    return Branching(1)


def failing() -> Failing:
    return Failing(1)


def ending() -> nn.Module:
    sys.exit(3)


def levels() -> Levels:
    return Levels()


def not_a_module() -> str:
    return "no module"
