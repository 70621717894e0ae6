"""Pictures per second of `msan deblur` with Ray on this machine, one worker and two, beside the plain command.

The three run in turn, round after round, each in a process of its own over the same pictures. Figures are of the time
between the first and the last result, by the times of the files; what comes before, loading and starting Ray, is told
apart (``start_seconds``). Beside the rate stands the processor time that the command, Ray's daemons and the workers
took for a picture, from Linux's /proc: where other programs run, it alone tells what Ray costs. The overhead is that
of one round's two runs, the median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from PIL import Image

__all__ = ["main"]

MSAN = "import msan_runtime.cli as cli; cli.entry_points = lambda **_: (); cli.main()"
EXAMPLE = Path(__file__).parents[1] / "examples" / "lighthouse-blurred.png"

KINDS = {
    "plain": (),
    "ray_1_worker": ("--ray", "local", "--ray-workers", "1"),
    "ray_2_workers": ("--ray", "local", "--ray-workers", "2", "--ray-cpus", "1"),
}
RAY = ("ray_1_worker", "ray_2_workers")


def main() -> None:
    """Print and optionally write the figures of every kind of run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--suffix", default=".png", help="of the pictures")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msan-bench-") as folder:
        source = Path(folder) / "in"
        make_pictures(source, arguments.pictures, (arguments.height, arguments.width), arguments.suffix)
        rounds = [
            {kind: measure(source, Path(folder) / f"{kind}-{number}", kind) for kind in KINDS}
            for number in range(arguments.rounds)
        ]
    text = json.dumps(_result(arguments, rounds), indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text)


def make_pictures(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """Cuts of the example picture of (height, width), each a little further on."""
    folder.mkdir()
    height, width = size
    with Image.open(EXAMPLE) as image:
        large = image.convert("RGB").resize((width + count, height + count), Image.Resampling.LANCZOS)
    for number in range(count):
        large.crop((number, number, number + width, number + height)).save(folder / f"{number:04d}{suffix}")


def measure(source: Path, out: Path, kind: str) -> dict[str, float]:
    """One run of the command: when the first result came, and the rate from then on."""
    started = time.time()
    command = [sys.executable, "-c", MSAN, "deblur", source, "-o", out, "--backend", "ort-cpu", *KINDS[kind]]
    samples: list[tuple[float, float]] = []
    seconds: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            seconds |= processor_seconds(process.pid)
            samples.append((time.time(), sum(seconds.values())))
            time.sleep(0.2)
    wall_seconds = time.time() - started
    times = sorted(path.stat().st_mtime for path in out.iterdir() if not path.name.startswith("."))
    if len(times) != sum(1 for _ in source.iterdir()):
        raise RuntimeError(f"{kind} wrote {len(times)} results")
    clock, used = zip(*samples, strict=True)
    used_seconds = float(np.interp(times[-1], clock, used) - np.interp(times[0], clock, used))
    return {
        "pictures_per_second": round((len(times) - 1) / (times[-1] - times[0]), 3),
        "processor_seconds_per_picture": round(used_seconds / (len(times) - 1), 3),
        "start_seconds": round(times[0] - started, 2),
        "wall_seconds": round(wall_seconds, 2),
    }


def processor_seconds(root: int) -> dict[int, float]:
    """Seconds of a processor that each process has taken so far: ``root`` and all that came of it."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    family = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        if not more:
            return {pid: ticks[pid] / os.sysconf("SC_CLK_TCK") for pid in family & ticks.keys()}
        family |= more


def _result(arguments: argparse.Namespace, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    return {
        "what": "msan deblur of a folder with msan-s on ort-cpu, by itself and with --ray local",
        "pictures": arguments.pictures,
        "height_px": arguments.height,
        "width_px": arguments.width,
        "suffix": arguments.suffix,
        "median": {kind: _medians([one[kind] for one in rounds]) for kind in KINDS},
        "overhead_by_wall_time": {kind: _overhead(rounds, kind, "pictures_per_second") for kind in RAY},
        "overhead_by_processor_time": {kind: _overhead(rounds, kind, "processor_seconds_per_picture") for kind in RAY},
        "rounds": rounds,
        "machine": describe_machine(("msan", "numpy", "onnxruntime", "ray", "pyarrow")),
    }


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def _overhead(rounds: list[dict[str, dict[str, float]]], kind: str, figure: str) -> float:
    """What a picture takes over what it takes the plain command, less 1."""
    ratios = [one[kind][figure] / one["plain"][figure] for one in rounds]
    return round(statistics.median(1 / ratio if "per_second" in figure else ratio for ratio in ratios) - 1, 3)


if __name__ == "__main__":
    main()
