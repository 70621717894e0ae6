"""Latency of all competitors as a picture: bars of the median with the slowest tenth, a panel for each size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msan_runtime.atomic import replacing
from msan_runtime.bench.competitors import OURS
from msan_runtime.bench.latency import SizeResult
from msan_runtime.errors import MissingExtraError

__all__ = ["require_matplotlib", "save_plot"]

OUR_COLOUR, OTHER_COLOUR = "tab:blue", "0.7"


def require_matplotlib() -> Any:
    """Matplotlib's ``Figure``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "evaluate") from error
    return Figure


def save_plot(results: Sequence[SizeResult], path: Path, title: str) -> None:
    """Draw ``results`` to a PNG file, atomically.

    Raises:
        MissingExtraError: without matplotlib.
    """
    rows = max(len(result.rows) for result in results)
    figure = require_matplotlib()(figsize=(4.5 * len(results) + 1, 1.6 + 0.45 * rows), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        _draw(axes, result)
    figure.suptitle(title)
    figure.supxlabel("ms per picture: median, up to the 90th percentile", fontsize="medium")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw(axes: Any, result: SizeResult) -> None:
    rows = result.rows[::-1]
    medians = [row.latency.percentile_ms(50) for row in rows]
    late = [row.latency.percentile_ms(90) - median for row, median in zip(rows, medians, strict=True)]
    colours = [OUR_COLOUR if row.name.startswith(OURS) else OTHER_COLOUR for row in rows]
    bars = axes.barh([row.name for row in rows], medians, xerr=[[0] * len(rows), late], color=colours, capsize=3)
    axes.bar_label(bars, fmt="%.0f", padding=3, label_type="center")
    axes.set(title=f"{result.height}×{result.width}")
    axes.spines[["top", "right"]].set_visible(False)
