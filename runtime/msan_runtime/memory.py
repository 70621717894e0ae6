"""What one run of the network holds in memory, and how large tiles may be for a given memory."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from msan_runtime.attention import TOKEN_PX, Attention
from msan_runtime.backends.base import TileLimits
from msan_runtime.errors import BackendError
from msan_runtime.manifest import Manifest

__all__ = [
    "DEFAULT_MEMORY_BYTES",
    "LEAST_TILE_PX",
    "MOST_KEYS",
    "engine_limits_within",
    "engine_run_bytes",
    "run_bytes",
    "tile_limits_within",
]

DEFAULT_MEMORY_BYTES = 2**30
"""For one run, beside the process, the weights and the pictures. Fixed, so that tiles and hence results are the
same on every machine."""

LEAST_TILE_PX = 64 * 64
"""Area under which tiles are not made smaller to save memory: they would be little else than overlap."""

MOST_KEYS = 65_504
"""Fused FP16 attention gives NaN over more keys."""

KEY_PX = TOKEN_PX**2
FLOAT_BYTES = 4

BYTES_PER_PX_AND_CHANNEL = 64
"""Feature maps alive at once, for each pixel and base channel. Measured on ONNX Runtime 1.31 (peak of a fresh
process, 128×128 to 1408×1408): 35 to 62, over 16 and 32 channels, global attention and windows."""

ENGINE_BYTES_PER_PX_AND_CHANNEL = 10
"""The same of an FP16 engine, whose fused attention holds no matrix. 8.7 to 10.0 in what TensorRT-RTX 1.7 states on
building (total activation memory): tiles of 640×640 to 1920×1920, 16 and 32 channels, global attention and windows."""

MARGIN = 1.25
"""On top of both. The worst of what was measured on a processor needs 1.15, since allocators grow in powers of two; a
native backend keeps up to 15 bytes a pixel of pictures on the device."""

PAPER_CHANNELS, PAPER_RESBLOCKS = 32, 4
"""Of a graph that does not say."""

LARGEST_AREA_PX = 2**31


def run_bytes(manifest: Manifest, area_px: int) -> int:
    """The most memory that a run on one tile of ``area_px`` takes, in FP32, margin included.

    Feature maps grow with the area. Attention over the whole tile holds a matrix of keys × keys, which grows with
    the area squared; over windows, one of keys × keys of a window.
    """
    keys = area_px / KEY_PX
    features = BYTES_PER_PX_AND_CHANNEL * _number(manifest.spec, "base_channels", PAPER_CHANNELS) * area_px
    attention = FLOAT_BYTES * keys * min(keys, _keys_in_sight(manifest))
    return math.ceil(MARGIN * (features + attention))


def engine_run_bytes(manifest: Manifest, area_px: int) -> int:
    """The most device memory that an FP16 engine's run on one tile of ``area_px`` takes, margin included."""
    channels = _number(manifest.spec, "base_channels", PAPER_CHANNELS)
    return math.ceil(MARGIN * ENGINE_BYTES_PER_PX_AND_CHANNEL * channels * area_px)


def tile_limits_within(manifest: Manifest, memory_bytes: int | None = None) -> TileLimits:
    """The tiles that ``memory_bytes`` allows (``DEFAULT_MEMORY_BYTES`` if left out), no side bounded.

    Raises:
        BackendError: if the memory does not suffice for the smallest tile.
    """
    memory = DEFAULT_MEMORY_BYTES if memory_bytes is None else memory_bytes
    window = Attention.parse(manifest.attention).window_px
    most_px = MOST_KEYS * KEY_PX if window is None else LARGEST_AREA_PX
    area_px = _largest_area_px(memory, most_px, LEAST_TILE_PX, lambda area_px: run_bytes(manifest, area_px))
    return TileLimits(area_px=area_px, attention_px=_attention_px(manifest))


def engine_limits_within(
    manifest: Manifest, limits: TileLimits, memory_bytes: int | None = None, *, batch: int = 1
) -> TileLimits:
    """The ``limits`` of a native engine that runs up to ``batch`` tiles at once, lowered to ``memory_bytes`` if given.

    Raises:
        BackendError: if the memory does not suffice for the smallest tile.
    """
    area_px = limits.area_px
    if memory_bytes is not None:
        least_px = max(math.prod(limits.smallest), min(LEAST_TILE_PX, area_px))
        area_px = _largest_area_px(
            memory_bytes, area_px, least_px, lambda area_px: batch * engine_run_bytes(manifest, area_px)
        )
    return replace(limits, area_px=area_px, attention_px=_attention_px(manifest))


def _largest_area_px(memory_bytes: int, most_px: int, least_px: int, needed_bytes: Callable[[int], int]) -> int:
    """The largest area up to ``most_px``, in whole keys, that needs no more than ``memory_bytes``."""
    keys = range(most_px // KEY_PX + 1)
    area_px = KEY_PX * (bisect.bisect_right(keys, memory_bytes, key=lambda n: needed_bytes(n * KEY_PX)) - 1)
    if area_px < least_px:
        least = math.ceil(needed_bytes(least_px) / 2**20)
        raise BackendError(
            f"a memory of {memory_bytes / 2**20:.3g} MiB does not suffice for the smallest tile: "
            f"allow {least} MiB or more"
        )
    return area_px


def _keys_in_sight(manifest: Manifest) -> float:
    """To how many keys a position attends at most."""
    if not manifest.spec.get("attention", True):
        return 0
    window = Attention.parse(manifest.attention).window_tokens
    return math.inf if window is None else window**2


def _attention_px(manifest: Manifest) -> int | None:
    """Area of a tile at which global attention takes as many operations as all convolutions; ``None`` without it.

    For each pixel and sub-network of c base channels and r ResBlocks a level, convolutions take c²·(90·r + 25)
    multiplications; attention over n keys of 4·c channels takes 2·4·c·n for each key, of 64 pixels.
    """
    if not math.isinf(_keys_in_sight(manifest)):
        return None
    channels = _number(manifest.spec, "base_channels", PAPER_CHANNELS)
    resblocks = _number(manifest.spec, "resblocks", PAPER_RESBLOCKS)
    return KEY_PX**2 * channels * (90 * resblocks + 25) // 8


def _number(spec: Mapping[str, int | bool], name: str, default: int) -> int:
    return int(spec.get(name, default))
