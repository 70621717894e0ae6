"""Latency of every competitor at one size, in one run, with what is needed to judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msan_runtime.bench.competitors import OURS, BenchError, Entrant, Setup
from msan_runtime.bench.flops import Flops, network_flops
from msan_runtime.bench.folder import synthetic_picture
from msan_runtime.bench.memory import PeakMemory
from msan_runtime.bench.peak import MatrixMultiply
from msan_runtime.bench.timing import Latency, interleaved, paired_ratio
from msan_runtime.contract import SIZE_MULTIPLE, PictureArray
from msan_runtime.memory import run_bytes

__all__ = ["Row", "SizeResult", "check_size", "measure_size"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One competitor at one size.

    Attributes:
        name, device: of the competitor.
        latency: of one picture.
        flops: operations for one picture; tiles overlap, so that several take more than a whole picture.
        tiles: into which the picture was cut.
        peak_share: operations a second over what a matrix multiplication reached, on the CPU; else ``None``.
        memory: in a process of its own; ``None`` if it was not measured.
        levels_apart: largest difference from the first competitor's picture; ``None`` if the weights differ.
    """

    name: str
    device: str
    latency: Latency
    flops: int
    tiles: int
    peak_share: float | None
    memory: PeakMemory | None
    levels_apart: int | None


@dataclass(frozen=True, kw_only=True)
class SizeResult:
    """All competitors at one size, and what the whole picture takes in operations."""

    height: int
    width: int
    flops: Flops
    peak_flops_per_second: float
    rows: tuple[Row, ...]

    def ratios(self) -> dict[str, dict[str, float]]:
        """For each of our competitors and each other one, the median of paired ratios of their times."""
        ours = [row for row in self.rows if row.name.startswith(OURS)]
        return {
            row.name: {
                other.name: round(paired_ratio(row.latency, other.latency), 3)
                for other in self.rows
                if other is not row
            }
            for row in ours
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values."""
        return {
            "height": self.height,
            "width": self.width,
            "gflop": {
                "convolutions": round(self.flops.convolutions / 1e9, 3),
                "attention": round(self.flops.attention / 1e9, 3),
            },
            "peak_gflop_per_second": round(self.peak_flops_per_second / 1e9, 1),
            "competitors": [_row_json(row) for row in self.rows],
            "ratios": self.ratios(),
        }


def check_size(setup: Setup, height: int, width: int, memory_bytes: int | None) -> None:
    """Refuse a size that some competitor cannot run.

    Raises:
        BenchError: if a side is no multiple of 8, or a run on the whole picture, as competitors do, would take
            more than ``memory_bytes`` (no bound if ``None``).
    """
    if height < SIZE_MULTIPLE or width < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise BenchError(
            f"sizes must be multiples of {SIZE_MULTIPLE}, so that all do the same work, not {height}×{width}"
        )
    needed = run_bytes(setup.bundle.manifest, height * width)
    if memory_bytes is not None and needed > memory_bytes:
        raise BenchError(
            f"competitors run a picture whole: {height}×{width} may take {needed / 2**30:.0f} GiB, and this machine "
            f"has {memory_bytes / 2**30:.0f}. Choose smaller --sizes"
        )


def measure_size(
    setup: Setup,
    entrants: Mapping[str, Entrant],
    height: int,
    width: int,
    *,
    rounds: int,
    memories: Mapping[str, PeakMemory],
    on_round: Callable[[], object] = lambda: None,
) -> SizeResult:
    """Time all ``entrants`` on one picture of height×width pixels, in turns, a matrix multiplication among them."""
    picture = synthetic_picture(height, width)
    whole = network_flops(setup.bundle.manifest, height, width)
    tried = _tried(entrants, picture, whole)
    multiply = MatrixMultiply()
    calls: dict[str, Callable[[], object]] = {name: _call(entrant, picture) for name, entrant in entrants.items()}
    latencies = interleaved({**calls, "": multiply.run}, rounds, on_round=on_round)
    rows: list[Row] = []
    for name, entrant in entrants.items():
        rate = 1000 * tried[name].flops / latencies[name].percentile_ms(50)
        rows.append(
            Row(
                name=name,
                device=entrant.device,
                latency=latencies[name],
                flops=tried[name].flops,
                tiles=tried[name].tiles,
                peak_share=rate / multiply.flops_per_second if entrant.device.startswith("CPU") else None,
                memory=memories.get(name),
                levels_apart=tried[name].levels_apart,
            )
        )
    peak = multiply.flops_per_second
    return SizeResult(height=height, width=width, flops=whole, peak_flops_per_second=peak, rows=tuple(rows))


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What a first run shows."""

    tiles: int
    flops: int
    levels_apart: int | None


def _tried(entrants: Mapping[str, Entrant], picture: PictureArray, whole: Flops) -> dict[str, _Tried]:
    """Run each once: its tiles and operations, and how far its picture is from the first one's."""
    tried: dict[str, _Tried] = {}
    reference: tuple[Entrant, PictureArray] | None = None
    for name, entrant in entrants.items():
        if entrant.watched is not None:
            entrant.watched.reset()
        result = entrant.run(picture)
        reference = reference or (entrant, result)
        apart = int(np.abs(result.astype(np.int16) - reference[1]).max())
        comparable = entrant.same_weights and reference[0].same_weights
        tiles, flops = (entrant.watched.tiles, entrant.watched.flops) if entrant.watched else (1, whole.total)
        tried[name] = _Tried(tiles=tiles, flops=flops, levels_apart=apart if comparable else None)
    return tried


def _call(entrant: Entrant, picture: PictureArray) -> Callable[[], object]:
    return lambda: entrant.run(picture)


def _row_json(row: Row) -> dict[str, Any]:
    memory = row.memory or PeakMemory(rss_bytes=None, device_bytes=None)
    return {
        "name": row.name,
        "device": row.device,
        "latency": row.latency.to_dict(),
        "tiles": row.tiles,
        "gflop": round(row.flops / 1e9, 3),
        "peak_share": None if row.peak_share is None else round(row.peak_share, 4),
        "peak_rss_mib": _mib(memory.rss_bytes),
        "device_mib": _mib(memory.device_bytes),
        "levels_apart": row.levels_apart,
    }


def _mib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 2**20, 1)
