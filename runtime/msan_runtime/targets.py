"""GPU names to compute capabilities: cards (``rtx4090``), families (``rtx40``) and ``sm_89`` forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from msan_runtime.errors import MsanError

__all__ = [
    "DEFAULT_GPUS",
    "FAMILIES",
    "FP8_CARDS",
    "Capability",
    "TargetError",
    "capabilities_named",
    "describe_targets",
]

DEFAULT_GPUS = "rtx30,rtx40,rtx50"

FP8_CARDS = "It needs sm_89 or later: RTX 40, RTX 50, H100, DGX Spark"


class TargetError(MsanError):
    """A GPU name that is not known."""


@dataclass(frozen=True, order=True, kw_only=True)
class Capability:
    """A CUDA compute capability."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def sm(self) -> str:
        """``sm_86`` form."""
        return f"sm_{self.major}{self.minor}"

    @property
    def has_fp8(self) -> bool:
        """Whether its tensor cores multiply FP8: from 8.9 on."""
        return (self.major, self.minor) >= (8, 9)


SM75, SM80, SM86, SM89, SM90, SM120, SM121 = (
    Capability(major=major, minor=minor) for major, minor in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1))
)

FAMILIES: dict[str, tuple[Capability, str, str]] = {
    "rtx20": (SM75, "Turing: GeForce RTX 20, T4", "rtx2060 rtx2070 rtx2080 rtx2080ti titanrtx t4"),
    "a100": (SM80, "Ampere data centre: A100, A30", "a30"),
    "rtx30": (
        SM86,
        "Ampere: GeForce RTX 30, RTX A series, A10, A40",
        (
            "rtx3050 rtx3060 rtx3060ti rtx3070 rtx3070ti rtx3080 rtx3080ti rtx3090 rtx3090ti "
            "rtxa2000 rtxa4000 rtxa5000 rtxa6000 a2 a10 a40"
        ),
    ),
    "rtx40": (
        SM89,
        "Ada: GeForce RTX 40, RTX Ada, L4, L40",
        (
            "rtx4050 rtx4060 rtx4060ti rtx4070 rtx4070super rtx4070ti rtx4070tisuper rtx4080 rtx4080super rtx4090 "
            "rtx4000ada rtx5000ada rtx6000ada l4 l40 l40s"
        ),
    ),
    "h100": (SM90, "Hopper data centre: H100, H200 (classic TensorRT only)", "h200"),
    "rtx50": (
        SM120,
        "Blackwell: GeForce RTX 50, RTX PRO Blackwell",
        "rtx5050 rtx5060 rtx5060ti rtx5070 rtx5070ti rtx5080 rtx5090 rtxpro6000",
    ),
    "gb10": (SM121, "Blackwell: DGX Spark", "dgxspark"),
}

BY_NAME = {name: capability for family, (capability, _, cards) in FAMILIES.items() for name in (family, *cards.split())}
KNOWN = frozenset(BY_NAME.values())


def capabilities_named(names: str | Sequence[str]) -> tuple[Capability, ...]:
    """Compute capabilities of a comma-separated list of GPU names, ascending, without repeats.

    Spaces, hyphens, underscores and capitals do not matter, nor do ``GeForce`` and ``NVIDIA``:
    ``RTX 4090``, ``rtx4090``, ``rtx40``, ``sm_89``, ``sm89`` and ``8.9`` are all 8.9.

    Raises:
        TargetError: for a name that is not known, or none at all.
    """
    parts = names.split(",") if isinstance(names, str) else names
    found = {_capability(part) for part in parts if part.strip()}
    if not found:
        raise TargetError(f"no GPU named. Try --gpu {DEFAULT_GPUS}, or --gpu list to see the names")
    return tuple(sorted(found))


def describe_targets() -> list[tuple[str, str, str, str]]:
    """A row for each family: name, ``sm`` form, description, cards."""
    return [(family, capability.sm, text, cards) for family, (capability, text, cards) in FAMILIES.items()]


def _capability(name: str) -> Capability:
    plain = re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())
    if plain in BY_NAME:
        return BY_NAME[plain]
    match = re.fullmatch(r"(?:sm|cc)?(\d{1,2})\.?(\d)", plain)
    if match:
        capability = Capability(major=int(match.group(1)), minor=int(match.group(2)))
        if capability in KNOWN:
            return capability
    raise TargetError(f"no GPU named {name.strip()!r}. See the names with: msan build --gpu list")
