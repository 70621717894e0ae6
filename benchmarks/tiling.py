"""What cutting pictures into tiles costs in quality, over the size of tiles and their overlap.

Every picture is deblurred whole and in tiles by one bundle on the CPU. The tiles are those that the runtime plans where
no side may be longer than the size: their overlaps are what was asked, or up to 8 px more for the grid. Three figures
for each size and overlap:

- fidelity: PSNR in dB of the tiled result against the untiled one, mean over pictures;
- gain: PSNR against the sharp picture, tiled minus untiled, in dB, mean over pictures;
- seam: with D = tiled - untiled (mean of the three channels), the mean of |D[y, x] - D[y, x-1]| where a tile begins or
  ends between columns x-1 and x (and of rows likewise), divided by the same mean over all other neighbours. 1 means
  that the places where tiles end cannot be told from the rest; the steps themselves are given in levels, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import describe_machine

from msan.evaluation.metrics import psnr_db
from msan.evaluation.sets import MeasuredPair, find_evaluation_sets
from msan_runtime import Deblurrer
from msan_runtime.contract import PictureArray
from msan_runtime.tiling import TiledRunner

__all__ = ["main"]

TILES_PX = (128, 256, 384, 512)
OVERLAPS_PX = (0, 8, 16, 32, 64, 96)
WHOLE_BYTES = 16 * 2**30


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One picture in tiles of one size and overlap."""

    fidelity_db: float
    gain_db: float
    seam_step: float
    other_step: float
    computed_over_whole: float


def main() -> None:
    """Print and optionally write all figures, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders that msan evaluate takes")
    parser.add_argument("--bundle", default="msan-s")
    parser.add_argument("--limit", type=int, default=3, help="only so many pictures of each set")
    parser.add_argument("--tiles", type=int, nargs="+", default=TILES_PX)
    parser.add_argument("--overlaps", type=int, nargs="+", default=OVERLAPS_PX, help="over half a tile is left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    sets = find_evaluation_sets(arguments.data, limit=arguments.limit)
    pairs = [pair for found in sets for pair in found.pairs()]
    settings = [(tile, overlap) for tile in arguments.tiles for overlap in arguments.overlaps if 2 * overlap <= tile]
    rows = measure(arguments.bundle, pairs, settings)
    result = {
        "what": f"{arguments.bundle}: pictures in tiles against the same pictures whole, ort-cpu",
        "pictures": {found.name: [name for name, _ in found.files] for found in sets},
        "settings": rows,
        "machine": describe_machine(("msan", "numpy", "onnxruntime")),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text)
    if arguments.plot is not None:
        draw(rows, arguments.plot)


def measure(bundle: str, pairs: Sequence[MeasuredPair], settings: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
    """Means over all pictures for each (tile, overlap)."""
    rows: list[dict[str, float]] = []
    with Deblurrer.load(bundle, "ort-cpu", memory_bytes=WHOLE_BYTES) as deblurrer:
        whole = [deblurrer.deblur(pair.blurred) for pair in pairs]
        for tile, overlap in settings:
            runner = TiledRunner(deblurrer.backend, overlap_px=overlap)
            runner.limits = replace(runner.limits, largest=(tile, tile), attention_px=None)
            figures = [_compare(runner, pair, one) for pair, one in zip(pairs, whole, strict=True)]
            rows.append({"tile_px": tile, "overlap_px": overlap, **_means(figures)})
    return rows


def _compare(runner: TiledRunner, pair: MeasuredPair, whole: PictureArray) -> Figures:
    (tiled,) = runner.run([pair.blurred])
    height, width = whole.shape[:2]
    plan = runner.plan(height, width)
    difference = (tiled.astype(np.float64) - whole).mean(axis=2)
    seam, other = steps(difference, _borders(plan.tops, plan.tile[0]), _borders(plan.lefts, plan.tile[1]))
    return Figures(
        fidelity_db=psnr_db(tiled, whole),
        gain_db=psnr_db(tiled, pair.sharp) - psnr_db(whole, pair.sharp),
        seam_step=seam,
        other_step=other,
        computed_over_whole=len(plan) * plan.tile[0] * plan.tile[1] / (height * width),
    )


def steps(difference: npt.NDArray[np.float64], rows: Sequence[int], columns: Sequence[int]) -> tuple[float, float]:
    """Mean step between neighbours of H×W ``difference`` before ``rows`` and ``columns``, and elsewhere."""
    at_seam: list[npt.NDArray[np.float64]] = []
    elsewhere: list[npt.NDArray[np.float64]] = []
    for axis, borders in ((0, rows), (1, columns)):
        changes = np.abs(np.diff(difference, axis=axis))
        index = [border - 1 for border in borders if border <= changes.shape[axis]]
        at_seam.append(np.take(changes, index, axis=axis).ravel())
        elsewhere.append(np.delete(changes, index, axis=axis).ravel())
    return float(np.concatenate(at_seam).mean()), float(np.concatenate(elsewhere).mean())


def _borders(starts: tuple[int, ...], tile: int) -> list[int]:
    """Where tiles begin or end inside the picture."""
    return sorted({*starts[1:], *(start + tile for start in starts[:-1])})


def _means(figures: Sequence[Figures]) -> dict[str, float]:
    def mean(name: str) -> float:
        return statistics.fmean(getattr(figure, name) for figure in figures)

    return {
        "fidelity_db": round(mean("fidelity_db"), 3),
        "gain_db": round(mean("gain_db"), 4),
        "seam": round(mean("seam_step") / mean("other_step"), 3),
        "seam_step_levels": round(mean("seam_step"), 4),
        "other_step_levels": round(mean("other_step"), 4),
        "computed_over_whole": round(mean("computed_over_whole"), 3),
    }


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """The three curves over the overlap, a line for each size of tiles."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    titles = {
        "fidelity_db": "tiled against untiled (dB)",
        "gain_db": "gain over untiled, against sharp (dB)",
        "seam": "step at tile borders over step elsewhere",
    }
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for tile, points in _by_tile(rows):
            panel.plot(*zip(*((p["overlap_px"], p[name]) for p in points), strict=True), marker="o", label=f"{tile} px")
        panel.set(title=title, xlabel="overlap (px)")
        panel.grid(alpha=0.3)
    panels[0].legend(title="tile")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _by_tile(rows: Sequence[dict[str, float]]) -> Iterator[tuple[int, list[dict[str, float]]]]:
    for tile in dict.fromkeys(int(row["tile_px"]) for row in rows):
        yield tile, [row for row in rows if row["tile_px"] == tile]


if __name__ == "__main__":
    main()
