"""The building blocks of MSAN: ResBlock, self-attention module, encoder-decoder sub-network.

Attribute names are those of the published checkpoint's keys (``edcoder1.layer2.0.conv1.weight``),
so that a state dict goes in and comes out without translation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msan.spec import ModelSpec

__all__ = ["EncoderDecoder", "ResBlock", "SelfAttention"]


class ResBlock(nn.Module):
    """conv - ReLU - conv + identity, no normalisation (§3.1). N×C×H×W in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class SelfAttention(nn.Module):
    """Self-attention with group convolution (§3.2, Eqs. 2-3): Y = λ·up(attend(down(X))) + X.

    N×C×H×W in and out, H and W even. One head of dimension C over the H/2 × W/2 positions,
    **without** the usual 1/sqrt(C) scale. λ is ``gamma``, 0 at the start of training.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gconv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.query_conv = nn.Conv2d(channels, channels, 1)
        self.key_conv = nn.Conv2d(channels, channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.degconv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        down = self.gconv(x)
        attended = attend(self.query_conv(down), self.key_conv(down), self.value_conv(down))
        return self.gamma * self.degconv(attended) + x


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QᵀK) over key positions applied to V (Eq. 2), scale 1.0. All N×C×H×W."""
    batch, channels, height, width = query.shape

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).unsqueeze(1)

    out = F.scaled_dot_product_attention(tokens(query), tokens(key), tokens(value), scale=1.0)
    return out.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)


def resblocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(count)))


class EncoderDecoder(nn.Module):
    """One sub-network (§3.1): three-level encoder, self-attention, decoder with additive skips.

    Takes N×(3|6)×H×W (H and W multiples of 8; of 4 without attention) and, from the second
    sub-network on, the previous one's quarter-scale encoder features; gives the 3-channel
    residual and its own features for the next.
    """

    def __init__(self, spec: ModelSpec, stage: int) -> None:
        super().__init__()
        full, half, quarter = spec.channels
        self.layer1 = nn.Conv2d(spec.input_channels(stage), full, 3, padding=1)
        self.layer2 = resblocks(full, spec.resblocks)
        self.layer3 = nn.Conv2d(full, half, 3, stride=2, padding=1)
        self.layer4 = resblocks(half, spec.resblocks)
        self.layer5 = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.layer6 = resblocks(quarter, spec.resblocks)
        self.sa: nn.Module | None = SelfAttention(quarter) if spec.attention else None
        self.layer7 = nn.ConvTranspose2d(quarter, half, 4, stride=2, padding=1)
        self.layer8 = resblocks(half, spec.resblocks)
        self.layer9 = nn.ConvTranspose2d(half, full, 4, stride=2, padding=1)
        self.layer10 = resblocks(full, spec.resblocks)
        self.layer11 = nn.Conv2d(full, 3, 3, padding=1)

    def forward(self, x: Tensor, previous_features: Tensor | None) -> tuple[Tensor, Tensor]:
        full = self.layer2(self.layer1(x))
        half = self.layer4(self.layer3(full))
        quarter = self.layer5(half)
        if previous_features is not None:
            quarter = quarter + previous_features
        features = self.layer6(quarter)
        attended = features if self.sa is None else self.sa(features)
        decoded = self.layer8(self.layer7(attended) + half)
        decoded = self.layer10(self.layer9(decoded) + full)
        return self.layer11(decoded), features
