"""Which of two backends is faster on this machine, and how far apart their results are: found once, then remembered."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from msan_runtime.atomic import write_text
from msan_runtime.backends.base import Backend
from msan_runtime.cache import cache_folder
from msan_runtime.contract import PictureArray
from msan_runtime.machine import installed_versions, processor_name, usable_cores

__all__ = ["Verdict", "contest_conditions", "recall_verdict", "remember_verdict", "timed_verdict"]

VERSION = 3
SIDES_PX = (64, 128, 256, 384)
"""From small to large. What is slower on small tiles may be faster on the larger ones that pictures are made of."""
ROUNDS = 4
BUDGET_SECONDS = 4.0
"""For all timed runs; the side of the tile follows from it."""

LEVELS_APART = 3
LEAST_PSNR_DB = 50.0
"""How far the challenger's tile may be from the champion's: the bounds of ``msan verify`` for uint8 pictures."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Time of ``challenger`` over that of ``champion``: of the best runs of both on one tile.

    The best, since whatever else the machine does can only make a run longer.

    Attributes:
        challenger, champion: names of the backends.
        ratio: under 1 where the challenger is faster.
        side_px: of the square tile that both ran.
        levels_apart: largest difference between their results, in levels of 255.
        psnr_db: between their results; infinite if they are equal.
    """

    challenger: str
    champion: str
    ratio: float
    side_px: int
    levels_apart: int
    psnr_db: float

    @property
    def slower(self) -> bool:
        """Whether the challenger is slower."""
        return self.ratio > 1

    @property
    def astray(self) -> bool:
        """Whether the challenger's result is not the champion's, by more than rounding."""
        return self.levels_apart > LEVELS_APART or not self.psnr_db >= LEAST_PSNR_DB

    def __str__(self) -> str:
        tile = f"{self.side_px}×{self.side_px} tile"
        if self.astray:
            apart = f"{self.levels_apart} levels, {self.psnr_db:.1f} dB"
            return f"its result is not that of {self.champion} ({apart} on a {tile})"
        return f"takes {self.ratio:.2f} times as long as {self.champion} on this machine (timed on a {tile})"


def timed_verdict(challenger: Backend, champion: Backend) -> Verdict:
    """Run both in turns on one tile of noise, the largest of ``SIDES_PX`` that the budget allows.

    Raises:
        BackendError: if one of them fails.
    """
    side = _affordable_side(challenger, champion)
    tile = _tile(side)
    pairs = [(_seconds(challenger, tile), _seconds(champion, tile)) for _ in range(ROUNDS + 1)]
    ratio = min(one for one, _ in pairs) / min(other for _, other in pairs)
    levels_apart, psnr_db = _difference(challenger.infer(tile), champion.infer(tile))
    return Verdict(
        challenger=challenger.name,
        champion=champion.name,
        ratio=ratio,
        side_px=side,
        levels_apart=levels_apart,
        psnr_db=psnr_db,
    )


def _affordable_side(*backends: Backend) -> int:
    """The side of the tile: each size is tried if the one before it promises that the budget suffices."""
    most_px = min(backend.limits.area_px for backend in backends)
    sides = [side for side in SIDES_PX if side * side <= most_px] or [8]
    for backend in backends:
        backend.infer(_tile(sides[0]))
    for side, larger in pairwise(sides):
        seconds = max(_seconds(backend, _tile(side)) for backend in backends)
        if 2 * (ROUNDS + 1) * seconds * (larger / side) ** 2 > BUDGET_SECONDS:
            return side
    return sides[-1]


def contest_conditions(challenger: str, graph_sha256: str, packages: Iterable[str]) -> Mapping[str, object]:
    """What a verdict depends on: who asks, the graph, the versions of ``packages``, the processor and its cores."""
    return {
        "version": VERSION,
        "challenger": challenger,
        "graph_sha256": graph_sha256,
        "versions": installed_versions(packages),
        "processor": processor_name(),
        "cores": usable_cores(),
    }


def recall_verdict(conditions: Mapping[str, object]) -> Verdict | None:
    """The verdict remembered for just these conditions; ``None`` if there is none that can be read."""
    try:
        body = json.loads(_file(conditions).read_bytes())
        verdict = Verdict(**body["verdict"])
        readable = float(verdict.ratio) > 0 and verdict.levels_apart >= 0 and float(verdict.psnr_db) > 0
        return verdict if readable else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_verdict(conditions: Mapping[str, object], verdict: Verdict) -> None:
    """Keep a verdict in the user's cache folder. Where it cannot be written, it is timed again next time."""
    path = _file(conditions)
    body = {"conditions": conditions, "verdict": asdict(verdict)}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(body, indent=2) + "\n")


def _file(conditions: Mapping[str, object]) -> Path:
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "verdicts" / f"{key[:32]}.json"


def _tile(side_px: int) -> PictureArray:
    return np.random.default_rng(0).integers(0, 256, (1, side_px, side_px, 3), np.uint8)


def _difference(one: PictureArray, other: PictureArray) -> tuple[int, float]:
    """Largest difference in levels, and PSNR in dB."""
    levels = one.astype(np.int32) - other
    error = float(np.mean(np.square(levels)))
    return int(np.abs(levels).max()), math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _seconds(backend: Backend, tile: PictureArray) -> float:
    started = time.perf_counter()
    backend.infer(tile)
    return time.perf_counter() - started
