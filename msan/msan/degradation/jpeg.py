"""JPEG compression and decompression of a picture as libjpeg does them, in PyTorch on any device.

ITU-T T.81: YCbCr (JFIF), chroma at full or half scale, 8×8 DCT, the standard's example quantisation
tables (Annex K.1) scaled by libjpeg's quality rule, and back with libjpeg's triangle filter for chroma.
Entropy coding loses nothing and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from msan.degradation.blur import BlurError

__all__ = ["JpegSpec", "Subsampling", "jpeg_round_trip"]

Subsampling = Literal["4:4:4", "4:2:0"]

BLOCK_PX = 8

HALF = 1 << 15
"""libjpeg's colour transforms have 16 fractional bits."""

DCT = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
"""libjpeg's accurate integer DCT (``jfdctint``, ``jidctint``) as a matrix: √8·8192 times the orthonormal one.

Left half; the right one mirrors it, with the sign changed in odd rows.
"""

LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


@dataclass(frozen=True, kw_only=True)
class JpegSpec:
    """How a picture is compressed.

    Attributes:
        quality: 1 to 100, libjpeg's scale.
        subsampling: of the chroma channels.
        phase_px: (down, right) from the corner of a block to the picture's corner, 0 to 15: a crop
            of a JPEG file seldom begins where a block begins.

    Raises:
        BlurError: for a quality or phase out of range.
    """

    quality: int
    subsampling: Subsampling = "4:2:0"
    phase_px: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise BlurError(f"JPEG quality must lie in 1 to 100, not {self.quality}")
        if not all(0 <= phase < 2 * BLOCK_PX for phase in self.phase_px):
            raise BlurError(f"the phase of JPEG blocks must lie in 0 to 15 px, not {self.phase_px}")


def jpeg_round_trip(picture: Tensor, spec: JpegSpec) -> Tensor:
    """``picture`` (float32 3×H×W sRGB in [0, 1]) compressed and decompressed, on the 8-bit grid.

    Equal to what libjpeg (libjpeg-turbo, accurate integer DCT, baseline tables) makes of pictures over 4 px wide.
    """
    top, left = spec.phase_px
    levels = F.pad((picture.clamp(0, 1) * 255).round(), (left, 0, top, 0), mode="replicate")
    decoded = _rgb_levels(_coded(_ycbcr_levels(levels), spec))
    return decoded[:, top:, left:] / 255


def _ycbcr_levels(rgb: Tensor) -> Tensor:
    red, green, blue = (channel.int() for channel in rgb)
    luma = (19595 * red + 38470 * green + 7471 * blue + HALF) >> 16
    # libjpeg adds just under a half, so that no chroma comes out as 256.
    chroma_blue = (-11059 * red - 21709 * green + 32768 * blue + HALF - 1) >> 16
    chroma_red = (32768 * red - 27439 * green - 5329 * blue + HALF - 1) >> 16
    return torch.stack((luma, chroma_blue + 128, chroma_red + 128)).float()


def _rgb_levels(ycbcr: Tensor) -> Tensor:
    luma, chroma_blue, chroma_red = (channel.int() for channel in ycbcr)
    blue, red = chroma_blue - 128, chroma_red - 128
    green = (-22554 * blue - 46802 * red + HALF) >> 16
    levels = torch.stack((luma + ((91881 * red + HALF) >> 16), luma + green, luma + ((116130 * blue + HALF) >> 16)))
    return levels.clamp(0, 255).float()


def _coded(ycbcr: Tensor, spec: JpegSpec) -> Tensor:
    """Quantised and restored: 3×H×W levels, each on the 8-bit grid."""
    luma = _quantised(ycbcr[:1], LUMA_TABLE, spec.quality)
    if spec.subsampling == "4:4:4":
        return torch.cat((luma, _quantised(ycbcr[1:], CHROMA_TABLE, spec.quality)))
    height, width = ycbcr.shape[1:]
    chroma = _quantised(_halved(ycbcr[1:]), CHROMA_TABLE, spec.quality)[:, : -(-height // 2), : -(-width // 2)]
    return torch.cat((luma, _doubled(chroma)[:, :height, :width]))


def _quantised(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """C×H×W planes of levels through the DCT, division by the table, rounding, and back."""
    count, height, width = planes.shape
    padded = F.pad(planes, (0, -width % BLOCK_PX, 0, -height % BLOCK_PX), mode="replicate") - 128
    step = _scaled(table, quality).to(planes.device)[:, None]
    blocks = padded.double().reshape(count, padded.shape[1] // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX)
    matrix = _dct_matrix().to(planes.device)
    # Rows first, columns last, and back the other way; two fractional bits between the passes.
    eighths = _descaled(_along_columns(_descaled(torch.matmul(blocks, matrix.T), 11), matrix), 15)
    steps = ((eighths.abs() + 4 * step) / (8 * step)).floor() * eighths.sign()
    restored = _descaled(torch.matmul(_descaled(_along_columns(steps * step, matrix.T), 11), matrix), 18)
    return (restored.reshape(padded.shape) + 128).clamp(0, 255)[:, :height, :width].float()


def _along_columns(blocks: Tensor, matrix: Tensor) -> Tensor:
    """``matrix``·B of each block B of C×rows×8×columns×8."""
    return torch.matmul(matrix, blocks.flatten(3)).reshape(blocks.shape)


def _descaled(products: Tensor, bits: int) -> Tensor:
    """Whole numbers without their last ``bits`` bits, halves up."""
    return ((products + (1 << (bits - 1))) / (1 << bits)).floor()


def _dct_matrix() -> Tensor:
    """8×8 float64, in which products of these whole numbers are exact."""
    left = torch.tensor(DCT, dtype=torch.float64)
    sign = torch.tensor((1.0, -1.0), dtype=torch.float64).repeat(BLOCK_PX // 2)
    return torch.cat((left, left.flip(1) * sign[:, None]), 1)


def _scaled(table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """libjpeg's ``jpeg_quality_scaling`` and ``jpeg_add_quant_table``, for baseline files."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255)


def _halved(chroma: Tensor) -> Tensor:
    """Means of 2×2, rounded up and down in turn, as ``h2v2_downsample`` does; whole blocks of them."""
    height, width = chroma.shape[1:]
    # Right of the picture libjpeg repeats its last pixel, below it the last row of means.
    even = F.pad(chroma, (0, -width % (2 * BLOCK_PX), 0, height % 2), mode="replicate")
    bias = torch.tensor((0.25, 0.5), device=chroma.device).repeat(even.shape[2] // 4)
    means = (F.avg_pool2d(even, 2) + bias).floor()
    return F.pad(means, (0, 0, 0, -means.shape[1] % BLOCK_PX), mode="replicate")


def _doubled(chroma: Tensor) -> Tensor:
    """Twice the size by the triangle filter, rounded as ``h2v2_fancy_upsample`` does."""
    smooth = F.interpolate(chroma[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    bias = torch.tensor((8 / 16, 7 / 16), device=chroma.device).repeat(chroma.shape[2])
    return (smooth + bias).floor()
