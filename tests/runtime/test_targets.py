"""GPU names to compute capabilities, against NVIDIA's published table."""

from __future__ import annotations

import pytest

from msan_runtime.targets import TargetError, capabilities_named, describe_targets


@pytest.mark.parametrize(
    ("name", "sm"),
    [
        # https://developer.nvidia.com/cuda-gpus
        ("rtx2080", "sm_75"),
        ("a100", "sm_80"),
        ("rtx3090", "sm_86"),
        ("rtx4090", "sm_89"),
        ("l40s", "sm_89"),
        ("h200", "sm_90"),
        ("rtx5090", "sm_120"),
        ("gb10", "sm_121"),
        ("rtx30", "sm_86"),
        ("NVIDIA GeForce RTX 4090", "sm_89"),
        ("RTX-5070-Ti", "sm_120"),
        ("sm_86", "sm_86"),
        ("sm86", "sm_86"),
        ("SM_120", "sm_120"),
        ("8.9", "sm_89"),
        ("12.0", "sm_120"),
    ],
)
def test_a_name_gives_its_capability(name: str, sm: str) -> None:
    assert [capability.sm for capability in capabilities_named(name)] == [sm]


def test_a_list_is_sorted_and_without_repeats() -> None:
    found = capabilities_named("rtx50, rtx30,rtx4090,sm_89")
    assert [str(capability) for capability in found] == ["8.6", "8.9", "12.0"]


@pytest.mark.parametrize("name", ["rtx9000", "sm_99", "banana", "86x", "sm_8", "rtx30;rm"])
def test_an_unknown_name_is_refused_with_the_way_to_the_list(name: str) -> None:
    with pytest.raises(TargetError, match="--gpu list"):
        capabilities_named(name)


@pytest.mark.parametrize("names", ["", " , "])
def test_no_name_is_refused(names: str) -> None:
    with pytest.raises(TargetError, match="no GPU named"):
        capabilities_named(names)


def test_every_described_card_is_understood() -> None:
    for family, sm, _, cards in describe_targets():
        for name in (family, *cards.split()):
            assert [capability.sm for capability in capabilities_named(name)] == [sm]
