"""How many floating-point operations a bundle's graph takes on a picture, counted from its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msan_runtime.attention import TOKEN_PX, Attention
from msan_runtime.errors import BundleError
from msan_runtime.manifest import Manifest

__all__ = ["Flops", "network_flops"]

PICTURE_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations, a multiplication and an addition being two: of convolutions, and of attention's two products."""

    convolutions: int
    attention: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.convolutions + self.attention


def network_flops(manifest: Manifest, height: int, width: int) -> Flops:
    """Operations of one run on a picture or tile of height×width pixels, multiples of 8.

    Counted are the multiplications and additions of convolutions, transposed convolutions and attention's
    matrix products, as PyTorch's own counter does; biases, activations and softmax are not.

    Raises:
        BundleError: if the manifest's spec does not describe an MSAN network.
    """
    spec = manifest.spec
    stages = _number(spec, "stages")
    attends = bool(spec.get("attention", True))
    convolutions = sum(
        _stage_flops(spec, PICTURE_CHANNELS * (1 if stage == 0 else 2), height, width, attends=attends)
        for stage in range(stages)
    )
    pairs = _attended_pairs(Attention.parse(manifest.attention), height // TOKEN_PX, width // TOKEN_PX)
    quarter = 4 * _number(spec, "base_channels")
    return Flops(convolutions=convolutions, attention=stages * 2 * 2 * quarter * pairs if attends else 0)


def _stage_flops(spec: Mapping[str, int | bool], seen: int, height: int, width: int, *, attends: bool) -> int:
    """Convolutions of one encoder-decoder that sees ``seen`` channels."""
    full = _number(spec, "base_channels")
    half, quarter = 2 * full, 4 * full
    blocks = 2 * _number(spec, "resblocks")
    area, half_area, quarter_area = height * width, height * width // 4, height * width // 16
    # A transposed convolution multiplies at each position of its input, any other at each of its output.
    products = (
        9 * area * (seen * full + 2 * blocks * full**2 + full * PICTURE_CHANNELS)
        + 9 * half_area * (full * half + 2 * blocks * half**2)
        + 9 * quarter_area * (half * quarter + blocks * quarter**2)
        + 16 * quarter_area * quarter * half
        + 16 * half_area * half * full
    )
    if attends:
        products += (height // TOKEN_PX) * (width // TOKEN_PX) * quarter * (9 + 3 * quarter + 16)
    return 2 * products


def _attended_pairs(attention: Attention, rows: int, columns: int) -> int:
    """Pairs of a query and a key that are multiplied."""
    window = attention.window_tokens
    if window is None:
        return (rows * columns) ** 2
    block = window // 2
    queries = [-(-length // block) * block for length in (rows, columns)]
    keys = [min(window, length) for length in (rows, columns)]
    return queries[0] * queries[1] * keys[0] * keys[1]


def _number(spec: Mapping[str, int | bool], name: str) -> int:
    value = spec.get(name)
    if value is None:
        raise BundleError(f"the manifest's spec has no {name}: its operations cannot be counted. Deploy it again")
    return int(value)
