"""ModelSpec: the few numbers that fix the architecture of an MSAN network."""

from __future__ import annotations

from dataclasses import dataclass

from msan_runtime.errors import MsanError

__all__ = ["MSAN", "MSAN_S", "NAMED_SPECS", "ModelSpec", "SpecError", "spec_named"]

SCALES = 3
"""Encoder levels (full, half and quarter scale), fixed by the paper (§3.1)."""


class SpecError(MsanError):
    """A ModelSpec was asked for that no MSAN network can have."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture of an MSAN network (Guo et al. 2022, §3.1, Fig. 1).

    Attributes:
        stages: cascaded encoder-decoder sub-networks, at least 1 (the paper has 4).
        base_channels: channels at full scale; doubled at each halving of the scale (32).
        resblocks: ResBlocks at each level of each encoder and decoder, at least 1 (4).
        attention: whether each sub-network has its self-attention module (§3.2).
            ``False`` gives the paper's ablations M1 and M2.

    Raises:
        SpecError: for a number outside these bounds.
    """

    stages: int = 4
    base_channels: int = 32
    resblocks: int = 4
    attention: bool = True

    def __post_init__(self) -> None:
        for name in ("stages", "base_channels", "resblocks"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"ModelSpec.{name} must be a whole number of at least 1, not {value!r}")

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels at full, half and quarter scale."""
        return self.base_channels, 2 * self.base_channels, 4 * self.base_channels

    def input_channels(self, stage: int) -> int:
        """Channels that sub-network ``stage`` (from 0) sees: the picture, then also the last output."""
        return 3 if stage == 0 else 6

    @property
    def name(self) -> str:
        """``msan`` or ``msan-s`` for the named specs, else a name made of the numbers."""
        for name, spec in NAMED_SPECS.items():
            if spec == self:
                return name
        suffix = "" if self.attention else "-noattn"
        return f"msan-{self.stages}x{self.base_channels}c{self.resblocks}r{suffix}"

    def to_dict(self) -> dict[str, int | bool]:
        """The spec as plain JSON values."""
        return {
            "stages": self.stages,
            "base_channels": self.base_channels,
            "resblocks": self.resblocks,
            "attention": self.attention,
        }


MSAN = ModelSpec()
"""The network of the paper: 8,924,720 parameters."""

MSAN_S = ModelSpec(stages=2, base_channels=16, resblocks=3)
"""A small network of the same structure, for CPUs."""

NAMED_SPECS = {"msan": MSAN, "msan-s": MSAN_S}


def spec_named(name: str) -> ModelSpec:
    """The spec called ``name``.

    Raises:
        SpecError: if there is none of that name.
    """
    if name not in NAMED_SPECS:
        raise SpecError(f"no network named {name!r}. There are: {', '.join(NAMED_SPECS)}")
    return NAMED_SPECS[name]
