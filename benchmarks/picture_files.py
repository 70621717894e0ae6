"""Pictures that one core decodes and encodes a second, by format: what feeds a fast device. Processor time counts."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe_machine
from PIL import Image

from msan_runtime.image import read_picture, write_picture

__all__ = ["main"]

EXAMPLE = Path(__file__).parents[1] / "examples" / "lighthouse-blurred.png"
SUFFIXES = (".jpg", ".png", ".webp")


def main() -> None:
    """Print and optionally write the figures of every format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msan-bench-") as folder:
        size = (arguments.height, arguments.width)
        formats = {suffix: measure(Path(folder), suffix, size, arguments.rounds) for suffix in SUFFIXES}
    result = {
        "height_px": arguments.height,
        "width_px": arguments.width,
        "formats": formats,
        "machine": describe_machine(("msan", "numpy", "pillow")),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.write_text(text)


def measure(folder: Path, suffix: str, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """One format: the size of a file, and milliseconds of one core to read it and to write its result."""
    source = folder / f"in{suffix}"
    with Image.open(EXAMPLE) as image:
        image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS).save(source, quality=90)
    picture = read_picture(source)
    decode_ms = _processor_ms(lambda: read_picture(source), rounds)
    encode_ms = _processor_ms(lambda: write_picture(folder / f"out{suffix}", picture), rounds)
    return {
        "file_bytes": source.stat().st_size,
        "result_bytes": (folder / f"out{suffix}").stat().st_size,
        "decode_ms": decode_ms,
        "encode_ms": encode_ms,
        "pictures_per_core_second": round(1000 / (decode_ms + encode_ms), 1),
    }


def _processor_ms(action: Callable[[], object], rounds: int) -> float:
    """The median of the rounds but the first."""
    times: list[float] = []
    for _ in range(rounds + 1):
        started = time.process_time()
        action()
        times.append((time.process_time() - started) * 1000)
    return round(statistics.median(times[1:]), 2)


if __name__ == "__main__":
    main()
