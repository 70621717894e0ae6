"""The self-test of a bundle: a picture, and what every backend must make of it before it is used."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from msan_export.acceptance.cases import sample_cases, sized
from msan_export.source import Source, computed, reference_module
from msan_runtime.attention import Attention
from msan_runtime.contract import PictureArray
from msan_runtime.manifest import Profile, SelfTest

__all__ = ["SIDE_PX", "write_self_test"]

SIDE_PX = 64
"""Height and width of the picture, where the engine takes such a tile."""


def write_self_test(checkpoint: Source, folder: Path, profile: Profile, attention: Attention) -> SelfTest:
    """Write both pictures into ``folder``; give their paths.

    The picture is the middle of a shipped sample, 64×64, or as near to that as ``profile`` allows.
    """
    height, width = (
        min(max(SIDE_PX, least), most) for least, most in zip(profile.min[1:], profile.max[1:], strict=True)
    )
    blurred = sized(sample_cases()[0].picture, height, width)
    test = SelfTest(blurred="self-test.blurred.png", deblurred="self-test.deblurred.png")
    Image.fromarray(blurred).save(folder / test.blurred)
    Image.fromarray(_reference(checkpoint, attention, blurred)).save(folder / test.deblurred)
    return test


def _reference(checkpoint: Source, attention: Attention, blurred: PictureArray) -> PictureArray:
    network = reference_module(checkpoint, attention)
    with torch.inference_mode():
        _, picture = computed(network, torch.from_numpy(blurred)[None].permute(0, 3, 1, 2).float() / 255)
    return (picture[0].clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
