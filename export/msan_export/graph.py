"""The deployable module: picture in, picture out, with MSAN and the image contract inside.

Two foldings make the graph smaller without changing the function: λ goes into the weights of the
attention module's upsampling, and the Q, K and V convolutions become one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from msan.blocks import SelfAttention, attend
from msan.network import MsanNetwork
from msan_runtime.contract import SIZE_MULTIPLE, Io

__all__ = ["DeployableForeign", "DeployableMsan", "FoldedAttention", "PaddedNetwork", "under_contract"]


class FoldedAttention(nn.Module):
    """:class:`msan.blocks.SelfAttention` with λ and Q/K/V folded; N×C×H×W in and out."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention.attention
        self.gconv = copy.deepcopy(attention.gconv)
        self.qkv_conv = _joined((attention.query_conv, attention.key_conv, attention.value_conv))
        self.degconv = _scaled(attention.degconv, attention.gamma)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv_conv(self.gconv(x)).permute(0, 2, 3, 1).chunk(3, dim=3)
        return self.degconv(attend(query, key, value, self.attention).permute(0, 3, 1, 2)) + x


class DeployableMsan(nn.Module):
    """MSAN under the image contract: N×H×W×3 in and out, uint8 or float32 (``io``).

    The result equals ``MsanNetwork`` on the scaled picture, clamped to [0, 1] and, for uint8,
    rounded half to even.
    """

    def __init__(self, network: MsanNetwork, io: Io) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.io: Io = io
        for subnetwork in self.network.subnetworks:
            if isinstance(subnetwork.sa, SelfAttention):
                subnetwork.sa = FoldedAttention(subnetwork.sa)

    def forward(self, blurred: Tensor) -> Tensor:
        return under_contract(self.network, blurred, self.io)


class PaddedNetwork(nn.Module):
    """A network that takes multiples of ``multiple``, for pictures of any size: N×3×H×W in and out.

    What is missing is added at the lower and right border by repeating the edge, and cut off again.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, blurred: Tensor) -> Tensor:
        height, width = blurred.shape[2:]
        short = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = nn.functional.pad(blurred, short, mode="replicate")
        return self.network(padded)[:, :, :height, :width]


class DeployableForeign(nn.Module):
    """A network of another maker under the image contract, as :class:`DeployableMsan`.

    ``network`` takes N×3×H×W from 0 to 1, sides multiples of ``multiple``, and keeps their shape. The contract's own
    multiple of 8 is added outside the graph; what a network needs beyond that is added within.
    """

    def __init__(self, network: nn.Module, io: Io, multiple: int) -> None:
        super().__init__()
        copied = copy.deepcopy(network).eval()
        self.network = copied if SIZE_MULTIPLE % multiple == 0 else PaddedNetwork(copied, multiple)
        self.io: Io = io

    def forward(self, blurred: Tensor) -> Tensor:
        return under_contract(self.network, blurred, self.io)


def under_contract(network: nn.Module, blurred: Tensor, io: Io) -> Tensor:
    """``network`` on N×H×W×3 pictures of ``io``."""
    if io == "float32":
        return _clamped(network, blurred)
    levels = _clamped(network, blurred.to(torch.float32) / 255) * 255
    # TensorRT takes a cast to uint8 only as the very last operation.
    return levels.round().to(torch.uint8)


def _clamped(network: nn.Module, blurred: Tensor) -> Tensor:
    return network(blurred.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).clamp(0, 1)


def _joined(convolutions: tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]) -> nn.Conv2d:
    """One 1×1 convolution whose output channels are those of all three, one after the other."""
    channels = convolutions[0].in_channels
    joined = nn.Conv2d(channels, 3 * channels, 1)
    joined.weight = nn.Parameter(torch.cat([c.weight.detach() for c in convolutions]))
    joined.bias = nn.Parameter(torch.cat([c.bias.detach() for c in convolutions if c.bias is not None]))
    return joined


def _scaled(upsampling: nn.ConvTranspose2d, gain: Tensor) -> nn.ConvTranspose2d:
    """``upsampling`` with ``gain`` multiplied into weight and bias."""
    scaled = copy.deepcopy(upsampling)
    with torch.no_grad():
        scaled.weight.mul_(gain)
        if scaled.bias is not None:
            scaled.bias.mul_(gain)
    return scaled
