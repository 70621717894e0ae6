"""The MSAN network: encoder-decoder sub-networks in cascade (§3.1, Fig. 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msan.blocks import EncoderDecoder
from msan.spec import MSAN, ModelSpec
from msan_runtime.attention import GLOBAL, Attention

__all__ = ["SIZE_MULTIPLE", "MsanNetwork", "parameter_count", "start_as_identity"]

SIZE_MULTIPLE = 8
"""Height and width must be multiples of this: two halvings, and one in the attention module."""


class MsanNetwork(nn.Module):
    """MSAN as the paper and its published inference code have it.

    ``forward`` takes a blurred picture N×3×H×W in [0, 1] (H, W multiples of 8) and gives the
    deblurred picture of the same shape, D = B + last output, **not** clamped. ``attention`` is a
    setting of inference; the weights do not depend on it.
    """

    def __init__(self, spec: ModelSpec = MSAN, attention: Attention = GLOBAL) -> None:
        super().__init__()
        self.spec = spec
        self.attention = attention
        for stage in range(spec.stages):
            self.add_module(f"edcoder{stage + 1}", EncoderDecoder(spec, stage, attention))

    @property
    def subnetworks(self) -> list[EncoderDecoder]:
        """The sub-networks, first to last."""
        children = (getattr(self, f"edcoder{i + 1}") for i in range(self.spec.stages))
        return [child for child in children if isinstance(child, EncoderDecoder)]

    def stage_outputs(self, blurred: Tensor) -> list[Tensor]:
        """The residual of every sub-network, **first to last**, each N×3×H×W.

        The network sees B - 0.5; sub-network i > 1 sees it concatenated with the residual of
        sub-network i - 1 and adds that one's encoder features to its own.
        """
        centred = blurred - 0.5
        outputs: list[Tensor] = []
        features: Tensor | None = None
        for subnetwork in self.subnetworks:
            seen = torch.cat((centred, outputs[-1]), 1) if outputs else centred
            residual, features = subnetwork(seen, features)
            outputs.append(residual)
        return outputs

    def forward(self, blurred: Tensor) -> Tensor:
        return blurred + self.stage_outputs(blurred)[-1]


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers in ``network``."""
    return sum(parameter.numel() for parameter in network.parameters())


def start_as_identity(network: MsanNetwork) -> None:
    """Zero each sub-network's last convolution, so that training starts at D = B.

    Not in the paper; it saves a short training run the thousand steps that it takes to learn
    the identity.
    """
    for subnetwork in network.subnetworks:
        nn.init.zeros_(subnetwork.layer11.weight)
        if subnetwork.layer11.bias is not None:
            nn.init.zeros_(subnetwork.layer11.bias)
