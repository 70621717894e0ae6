"""The figures of ``msan bench`` for people: tables and sentences."""

from __future__ import annotations

from rich.table import Table

from msan_runtime.bench.folder import FolderTimes
from msan_runtime.bench.latency import SizeResult

__all__ = ["folder_lines", "latency_table", "ratio_table"]


def latency_table(result: SizeResult) -> Table:
    """A row for each competitor: latency, rate, memory, share of the peak."""
    table = Table(
        "competitor", title=f"{result.height}×{result.width}: {result.flops.total / 1e9:.1f} GFLOP, ms per picture"
    )
    for heading in ("p50", "p90", "p99", "pictures/s", "peak RSS, MiB", "of peak", "tiles", "levels apart"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        rss = None if row.memory is None else row.memory.rss_bytes
        table.add_row(
            row.name,
            *(f"{row.latency.percentile_ms(percent):.1f}" for percent in (50, 90, 99)),
            f"{1000 / row.latency.percentile_ms(50):.2f}",
            "" if rss is None else f"{rss / 2**20:.0f}",
            "" if row.peak_share is None else f"{row.peak_share:.0%}",
            str(row.tiles),
            "" if row.levels_apart is None else str(row.levels_apart),
        )
    return table


def ratio_table(result: SizeResult) -> Table | None:
    """How long our competitors take beside each other one; ``None`` if there is nothing to compare."""
    ratios = result.ratios()
    names = [row.name for row in result.rows]
    if not ratios or len(names) < 2:
        return None
    table = Table("time over that of", title="medians of paired ratios")
    for name in ratios:
        table.add_column(name, justify="right")
    for other in names:
        table.add_row(other, *(f"{ratios[name][other]:.3f}" if other != name else "" for name in ratios))
    return table


def folder_lines(times: FolderTimes, name: str) -> list[str]:
    """What a folder run took, in words."""
    idle = "by its own events" if times.device_busy_seconds is not None else "time outside the backend"
    return [
        f"{name}, from file to file on {times.backend}: {times.pictures} pictures in {times.wall_seconds:.1f} s, "
        f"{times.pictures / times.wall_seconds:.2f} a second",
        f"decode {times.decode_seconds:.2f} s, copy {times.copy_seconds:.2f} s, infer {times.infer_seconds:.2f} s, "
        f"encode {times.encode_seconds:.2f} s (decoding and encoding in threads beside the rest)",
        f"computing {times.busy_share:.1%} of the time; device idle {times.device_idle_share:.1%} ({idle})",
    ]
