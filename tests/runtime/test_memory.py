"""Memory of a run, against what was measured, and the tiles that a given memory allows."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msan_runtime.backends.base import TileLimits
from msan_runtime.contract import CONTRACT_VERSION
from msan_runtime.errors import BackendError
from msan_runtime.manifest import Manifest
from msan_runtime.memory import (
    DEFAULT_MEMORY_BYTES,
    LEAST_TILE_PX,
    engine_limits_within,
    engine_run_bytes,
    run_bytes,
    tile_limits_within,
)

MIB = 2**20


def manifest(channels: int = 16, attention: str = "global", *, attends: bool = True) -> Manifest:
    return Manifest(
        name="any",
        spec={"stages": 2, "base_channels": channels, "resblocks": 3, "attention": attends},
        contract_version=CONTRACT_VERSION,
        graphs=(),
        engines=(),
        files=(),
        versions={},
        provenance={},
        attention=attention,
    )


@pytest.mark.parametrize(
    ("channels", "attention", "side", "measured_mib"),
    [
        (16, "global", 128, 14),
        (16, "global", 256, 52),
        (16, "global", 512, 216),
        (16, "global", 640, 375),
        (16, "global", 896, 1046),
        (16, "global", 1024, 2362),
        (16, "global", 1280, 3464),
        (16, "window:192", 256, 62),
        (16, "window:192", 640, 363),
        (16, "window:192", 1408, 1870),
        (32, "global", 128, 24),
        (32, "global", 384, 205),
        (32, "global", 768, 860),
        (32, "window:384", 384, 257),
        (32, "window:384", 768, 1022),
    ],
)
def test_the_model_is_over_every_measured_peak_and_not_far(
    channels: int, attention: str, side: int, measured_mib: int
) -> None:
    """Peaks of fresh processes that ran a graph once in ONNX Runtime 1.31."""
    modelled = run_bytes(manifest(channels, attention), side * side)
    assert measured_mib * MIB <= modelled <= 2.5 * measured_mib * MIB


@pytest.mark.parametrize(
    ("channels", "side", "stated_bytes"),
    [
        (16, 640, 60_620_800),
        (16, 640, 65_536_000),
        (16, 1024, 159_383_552),
        (16, 1920, 553_779_200),
        (16, 1920, 560_332_800),
        (32, 640, 115_507_200),
        (32, 640, 120_423_936),
        (32, 1024, 292_620_288),
        (32, 1920, 1_024_822_272),
    ],
)
def test_the_model_of_engines_is_over_what_the_builder_states(channels: int, side: int, stated_bytes: int) -> None:
    """Total activation memory of TensorRT-RTX 1.7.1 for FP16 graphs, plus five pictures in uint8."""
    modelled = engine_run_bytes(manifest(channels), side * side)
    assert stated_bytes + 5 * 3 * side * side <= modelled <= 1.6 * stated_bytes


@settings(deadline=None, max_examples=100)
@given(st.integers(MIB, 2**34), st.sampled_from([16, 32]), st.integers(1, 4), st.integers(1, 400), st.integers(0, 400))
def test_the_largest_tile_of_an_engine_just_fits(
    memory: int, channels: int, batch: int, smallest: int, more: int
) -> None:
    described = manifest(channels)
    sides = (8 * smallest, 8 * smallest), (8 * (smallest + more), 8 * (smallest + more))
    profile = TileLimits(smallest=sides[0], largest=sides[1], area_px=math.prod(sides[1]))
    least = max(sides[0], min((64, 64), sides[1]))
    if memory < batch * engine_run_bytes(described, math.prod(least)):
        with pytest.raises(BackendError, match="does not suffice"):
            engine_limits_within(described, profile, memory, batch=batch)
        return
    found = engine_limits_within(described, profile, memory, batch=batch)
    assert (found.smallest, found.largest) == sides
    assert batch * engine_run_bytes(described, found.area_px) <= memory
    assert found.area_px == profile.area_px or batch * engine_run_bytes(described, found.area_px + 64) > memory


@settings(deadline=None, max_examples=200)
@given(
    st.integers(64 * MIB, 2**40), st.sampled_from([8, 16, 32]), st.sampled_from(["global", "window:192", "window:2040"])
)
def test_the_largest_tile_just_fits(memory: int, channels: int, attention: str) -> None:
    described = manifest(channels, attention)
    area = tile_limits_within(described, memory).area_px
    assert area % 64 == 0
    assert run_bytes(described, area) <= memory
    capped = attention == "global" and area == 65_504 * 64
    assert capped or run_bytes(described, area + 64) > memory


def test_global_attention_never_sees_more_than_65504_keys() -> None:
    assert tile_limits_within(manifest(), 2**50).area_px == 65_504 * 64
    assert tile_limits_within(manifest(attention="window:192"), 2**37).area_px > 65_504 * 64


def test_without_attention_or_in_windows_memory_and_cost_are_linear() -> None:
    for linear in (manifest(attention="window:192"), manifest(attends=False)):
        once = run_bytes(linear, 10**6)
        assert abs(run_bytes(linear, 10**7) - 10 * once) <= 10
        assert tile_limits_within(linear).attention_px is None


def test_attention_costs_as_much_as_the_rest_where_its_operations_are_as_many() -> None:
    """Operations of the paper's network on 1280×720: convolutions 2.93 TFLOP, attention 0.43 TFLOP."""
    paper = dataclasses.replace(
        manifest(32), spec={"stages": 4, "base_channels": 32, "resblocks": 4, "attention": True}
    )
    attention_px = tile_limits_within(paper).attention_px
    assert attention_px == pytest.approx(1280 * 720 * 2.93 / 0.43, rel=0.02)


def test_a_graph_that_does_not_say_counts_as_the_papers_network() -> None:
    unknown = dataclasses.replace(manifest(), spec={})
    paper = dataclasses.replace(unknown, spec={"stages": 4, "base_channels": 32, "resblocks": 4, "attention": True})
    assert tile_limits_within(unknown) == tile_limits_within(paper)


def test_the_memory_left_out_is_1_gib() -> None:
    assert DEFAULT_MEMORY_BYTES == 2**30
    assert tile_limits_within(manifest()) == tile_limits_within(manifest(), 2**30)


@pytest.mark.parametrize("memory", [-1, 0, 1, 4 * MIB])
def test_a_memory_for_no_tile_is_refused_with_the_least_that_does(memory: int) -> None:
    with pytest.raises(BackendError, match=r"allow (\d+) MiB or more") as caught:
        tile_limits_within(manifest(), memory)
    least = int(str(caught.value).split("allow ")[1].split()[0])
    assert tile_limits_within(manifest(), least * MIB).area_px >= LEAST_TILE_PX
