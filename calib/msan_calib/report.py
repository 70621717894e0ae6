"""What was measured and decided, as JSON, as tables and as pictures."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from msan_calib.calibrate import CalibratedGraph
from msan_calib.casts import FLOAT16_MAX
from msan_calib.half import Island
from msan_calib.ranges import FLOAT16_TINY, Ranges, TensorRange
from msan_calib.sensitivity import ASSUMED_TRUTH_DB, Choice
from msan_runtime.atomic import write_bytes
from msan_runtime.errors import MissingExtraError

__all__ = [
    "calibration_body",
    "islands_table",
    "kept_words",
    "plot_frontier",
    "plot_ranges",
    "ranges_body",
    "ranges_table",
    "weights_table",
]

SCHEMA_VERSION = 1


def calibration_body(result: CalibratedGraph, *, source: str, source_sha256: str = "") -> dict[str, Any]:
    """Everything about a calibrated graph as JSON values (``schema_version`` 1)."""
    half = result.half
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"file": source, "sha256": source_sha256},
        "options": asdict(result.options),
        "samples": result.samples.to_dict(),
        "fp16": {
            "psnr_db": list(half.quality.psnr_db),
            "worst_db": half.quality.worst_db,
            "plain_cast_worst_db": half.plain.worst_db,
            "evaluations": half.evaluations,
            "explained_with": half.explained_with,
            "casts": half.casts,
            "islands": [asdict(island) for island in half.islands],
        },
        "quantized": None if result.choice is None else _choice_body(result, result.choice),
    }


def _choice_body(result: CalibratedGraph, choice: Choice) -> dict[str, Any]:
    return {
        "precision": result.options.precision,
        "truth": "sharp pictures" if choice.truth_known else f"assumed at {ASSUMED_TRUTH_DB:g} dB",
        "loss_db": choice.point.loss_db,
        "flops_share": choice.point.flops_share,
        "worst_db": choice.point.worst_db,
        "convolutions": list(result.quantized),
        "kept": {entry.node: entry.kept for entry in result.convolutions if entry.kept},
        "frontier": [asdict(point) for point in choice.frontier],
        "blocks": [
            {
                "nodes": list(entry.block.nodes),
                "flops": entry.block.flops,
                "squared_error": entry.squared_error,
                "quantized": entry.block in choice.blocks,
            }
            for entry in choice.measured
        ],
    }


def islands_table(islands: Sequence[Island]) -> Table:
    """A row for each node that stays FP32 for more than the graph's form."""
    table = Table(title="FP32 islands", title_justify="left", box=None)
    for header in ("node", "operator", "why it is FP32", "buys dB"):
        table.add_column(header, overflow="fold")
    for island in islands:
        if island.kind != "form":
            table.add_row(island.node, island.op_type, island.reason, _buys(island))
    return table


def _named_table(name: str, *headers: str) -> Table:
    """A table whose first column folds names rather than cutting them."""
    table = Table(box=None)
    table.add_column(name, overflow="fold", min_width=24)
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _buys(island: Island) -> str:
    if island.buys_db is None:
        return ""
    return "the picture" if math.isinf(island.buys_db) else f"{island.buys_db:.1f}"


def kept_words(result: CalibratedGraph) -> str:
    """How many convolutions are kept FP16, by reason."""
    counts = Counter(entry.kept for entry in result.convolutions if entry.kept)
    left = len(result.convolutions) - sum(counts.values()) - len(result.quantized)
    if left:
        counts["over the budget"] = left
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def ranges_body(ranges: Ranges) -> dict[str, Any]:
    """Ranges as JSON values."""
    return {"schema_version": SCHEMA_VERSION, **asdict(ranges)}


def ranges_table(ranges: Ranges, rows: int) -> Table:
    """The tensors that are nearest to either end of FP16, most dangerous first."""
    table = _named_table("tensor", "made by", "min", "max", "p99.99", "overflow", "to zero")
    for entry in sorted(ranges.tensors, key=_danger, reverse=True)[:rows]:
        table.add_row(
            entry.tensor,
            entry.op_type,
            f"{entry.low:.3g}",
            f"{entry.high:.3g}",
            f"{entry.percentiles[99.99]:.3g}",
            _share(entry.overflow_share),
            _share(entry.underflow_share),
        )
    return table


def weights_table(ranges: Ranges, rows: int) -> Table:
    """The weights whose channels differ most, dead and outlying ones first."""
    table = _named_table("weight", "channels", "largest", "median", "smallest", "dead", "to zero")

    def spread(index: int) -> tuple[int, float]:
        entry = ranges.weights[index]
        return entry.dead_channels, entry.largest / max(entry.median_channel, 1e-30)

    for index in sorted(range(len(ranges.weights)), key=spread, reverse=True)[:rows]:
        entry = ranges.weights[index]
        table.add_row(
            entry.tensor,
            str(entry.channels),
            f"{entry.largest:.3g}",
            f"{entry.median_channel:.3g}",
            f"{entry.smallest_channel:.3g}",
            str(entry.dead_channels),
            _share(entry.underflow_share),
        )
    return table


def plot_ranges(ranges: Ranges, path: Path) -> None:
    """Magnitudes of every tensor in the graph's order, between the ends of FP16, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure, axes = _canvas()
    positions = range(len(ranges.tensors))
    median, largest = ([_floor(f(t)) for t in ranges.tensors] for f in (_median, _largest))
    axes.fill_between(positions, median, largest, alpha=0.35, label="median to largest", step="mid")
    axes.plot(positions, [_floor(t.percentiles[99.99]) for t in ranges.tensors], lw=0.8, label="99.99 %")
    axes.axhline(FLOAT16_MAX, color="tab:red", lw=1, label="FP16 ends")
    axes.axhline(FLOAT16_TINY, color="tab:orange", lw=1, label="FP16 becomes zero")
    axes.set(yscale="log", xlabel="tensor, in the graph's order", ylabel="magnitude")
    axes.legend(loc="lower left", fontsize=8)
    _save(figure, path)


def plot_frontier(choice: Choice, budget_db: float, path: Path) -> None:
    """Loss against the share of quantised operations, as a PNG.

    Raises:
        MissingExtraError: without matplotlib.
    """
    figure, axes = _canvas()
    points = [point for point in choice.frontier if math.isfinite(point.loss_db)]
    axes.plot([100 * p.flops_share for p in points], [p.loss_db for p in points], marker="o", ms=4)
    axes.plot([100 * choice.point.flops_share], [choice.point.loss_db], "o", ms=10, mfc="none", label="chosen")
    axes.axhline(budget_db, color="tab:red", lw=1, label="budget")
    axes.set(xlabel="quantised, % of all convolutions' operations", ylabel="loss of PSNR on held-out pictures, dB")
    axes.legend(fontsize=8)
    _save(figure, path)


def _canvas() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "calib") from error
    figure = Figure(figsize=(8, 4), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())


def _danger(entry: TensorRange) -> tuple[float, float, float]:
    return entry.overflow_share, entry.underflow_share, entry.largest


def _median(entry: TensorRange) -> float:
    return entry.percentiles[50.0]


def _largest(entry: TensorRange) -> float:
    return entry.largest


def _floor(magnitude: float) -> float:
    return max(magnitude, 1e-12)


def _share(share: float) -> str:
    return "" if share == 0 else f"{share:.2%}" if share >= 1e-4 else f"{share:.1e}"
