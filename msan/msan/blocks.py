"""The building blocks of MSAN: ResBlock, self-attention module, encoder-decoder sub-network.

Attribute names are those of the published checkpoint's keys (``edcoder1.layer2.0.conv1.weight``),
so that a state dict goes in and comes out without translation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msan.spec import ModelSpec
from msan_runtime.attention import GLOBAL, Attention

__all__ = ["EncoderDecoder", "ResBlock", "SelfAttention", "attend"]


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

    def __init__(self, channels: int, attention: Attention = GLOBAL) -> None:
        super().__init__()
        self.attention = attention
        self.gconv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.query_conv = nn.Conv2d(channels, channels, 1)
        self.key_conv = nn.Conv2d(channels, channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.degconv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        down = self.gconv(x)
        convolutions = (self.query_conv, self.key_conv, self.value_conv)
        query, key, value = (convolution(down).permute(0, 2, 3, 1) for convolution in convolutions)
        attended = attend(query, key, value, self.attention).permute(0, 3, 1, 2)
        return self.gamma * self.degconv(attended) + x


def attend(query: Tensor, key: Tensor, value: Tensor, attention: Attention = GLOBAL) -> Tensor:
    """softmax(QKᵀ)V (Eq. 2) over the positions that ``attention`` lets each see, scale 1.0. All N×H×W×C.

    With windows of K×K positions, queries go in blocks of half that side, and a block sees the K×K
    keys around it. At a border the window is moved inwards, so that it is whole; along a side of
    at most K positions it is all of them. So each query sees K/4 positions or more each way, and
    what fits into one window is attended to as a whole.
    """
    if attention.window_tokens is not None:
        return _attend_in_windows(query, key, value, attention.window_tokens)
    batch, height, width, channels = query.shape
    tokens = (batch, 1, height * width, channels)
    out = F.scaled_dot_product_attention(query.reshape(tokens), key.reshape(tokens), value.reshape(tokens), scale=1.0)
    return out.reshape(query.shape)


def _attend_in_windows(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    batch, height, width, channels = query.shape
    block = window // 2
    query_rows, key_rows = _windows(height, window, query.device)
    query_columns, key_columns = _windows(width, window, query.device)
    out = F.scaled_dot_product_attention(
        _gathered(query, query_rows, query_columns),
        _gathered(key, key_rows, key_columns),
        _gathered(value, key_rows, key_columns),
        scale=1.0,
    )
    down, across = query_rows.shape[0], query_columns.shape[0]
    blocks = out.reshape(batch, down, across, block, block, channels).transpose(2, 3)
    return blocks.reshape(batch, down * block, across * block, channels)[:, :height, :width]


def _windows(length: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions along one side, a row a block: of its queries (the last one repeated at the end), of its keys."""
    block = window // 2
    # Lengths are symbols while the network is exported, which Python's own min would fix.
    span = torch.sym_min(window, length)
    first = torch.arange((length + block - 1) // block, device=device) * block
    queries = (first[:, None] + torch.arange(block, device=device)).clamp(max=length - 1)
    start = (first - (window - block) // 2).clamp(min=0).clamp(max=length - span)
    return queries, start[:, None] + torch.arange(span, device=device)


def _gathered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The positions of N×H×W×C at every pair of rows (A×R) and columns (B×S): (N·A·B)×1×(R·S)×C."""
    batch, channels = x.shape[0], x.shape[3]
    (down, height), (across, width) = rows.shape, columns.shape
    picked = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    windows = picked.reshape(batch, down, height, across, width, channels).transpose(2, 3)
    return windows.reshape(batch * down * across, 1, height * width, channels)


def resblocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(count)))


class EncoderDecoder(nn.Module):
    """One sub-network (§3.1): three-level encoder, self-attention, decoder with additive skips.

    Takes N×(3|6)×H×W (H and W multiples of 8; of 4 without attention) and, from the second
    sub-network on, the previous one's quarter-scale encoder features; gives the 3-channel
    residual and its own features for the next.
    """

    def __init__(self, spec: ModelSpec, stage: int, attention: Attention = GLOBAL) -> None:
        super().__init__()
        full, half, quarter = spec.channels
        self.layer1 = nn.Conv2d(spec.input_channels(stage), full, 3, padding=1)
        self.layer2 = resblocks(full, spec.resblocks)
        self.layer3 = nn.Conv2d(full, half, 3, stride=2, padding=1)
        self.layer4 = resblocks(half, spec.resblocks)
        self.layer5 = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.layer6 = resblocks(quarter, spec.resblocks)
        self.sa: nn.Module | None = SelfAttention(quarter, attention) if spec.attention else None
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
