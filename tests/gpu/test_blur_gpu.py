"""Synthetic blur on a GPU against the CPU's."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch
from torch import Tensor

from msan.degradation.blur import BlurSpec
from msan.degradation.degrade import degrade, draw_degradation, margin_px
from msan.degradation.jpeg import JpegSpec, Subsampling, jpeg_round_trip

pytestmark = pytest.mark.gpu

QUIET = BlurSpec(noise_levels=0.0, moving_share=0.5, jpeg_share=0.0)
SEEDS = range(8)


@pytest.fixture(scope="module", autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")


def smooth_crops(side: int) -> Tensor:
    """8×3×side×side, of photograph-like smoothness."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((8, 3, side // 6, side // 6), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8)


def degraded(spec: BlurSpec, device: str) -> Tensor:
    margin = margin_px(spec)
    offsets = torch.randn((8, 2), generator=torch.Generator().manual_seed(1)) * 300
    crops = smooth_crops(96 + 2 * margin).to(device)
    made = degrade(crops, SEEDS, spec, margin_px=margin, offset_px=offsets)
    assert made.device.type == device
    return made.cpu() * 255


def test_blur_and_moving_regions_are_the_cpus_within_a_level() -> None:
    assert any(draw_degradation(seed, QUIET).regions for seed in SEEDS)
    difference = (degraded(QUIET, "cuda") - degraded(QUIET, "cpu")).abs()
    assert float(difference.max()) <= 1.01
    assert float(difference.mean()) < 0.02


def test_noise_is_of_the_cpus_strength_and_repeats() -> None:
    noisy = replace(QUIET, noise_levels=12.0)
    first = degraded(noisy, "cuda")
    assert torch.equal(degraded(noisy, "cuda"), first)
    on_gpu = (first - degraded(QUIET, "cuda")).flatten(1).std(1)
    on_cpu = (degraded(noisy, "cpu") - degraded(QUIET, "cpu")).flatten(1).std(1)
    assert torch.allclose(on_gpu, on_cpu, rtol=0.03, atol=0.05)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_the_cpus(quality: int, subsampling: Subsampling) -> None:
    spec = JpegSpec(quality=quality, subsampling=subsampling, phase_px=(3, 5))
    picture = smooth_crops(101)[0].float() / 255
    assert torch.equal(jpeg_round_trip(picture.cuda(), spec).cpu(), jpeg_round_trip(picture, spec))
