"""How far FP16, INT8 and FP8 graphs are from the FP32 graph on every picture of some folders, and NaN in any tensor.

    python benchmarks/precision.py FP32.onnx FP16.onnx INT8.onnx --pictures DIR [--pictures DIR] [--json FILE]

Graphs run node by node, each result in its own type, as `msan calibrate` runs them: ONNX Runtime by itself hides what
overflows in FP16. Pictures in uint8 hold no NaN, so every tensor on the way is looked at. Of a picture larger than
`--side` its middle is taken.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from rich.console import Console

from msan_calib.network import PictureNetwork, network_of
from msan_calib.quality import psnr_db
from msan_calib.walk import Step, Walker
from msan_runtime.contract import PictureArray, pad_to, round_up
from msan_runtime.errors import PictureError
from msan_runtime.image import find_pictures, read_picture

screen = Console(highlight=False)


@dataclass(kw_only=True)
class Tally:
    """What one graph gave over all pictures: PSNR against FP32 of each, and those on whose way NaN or infinity was."""

    psnr_db: list[float] = field(default_factory=list[float])
    worst: str = ""
    not_finite: list[str] = field(default_factory=list[str])
    levels_apart: int = 0

    def add(self, name: str, reference: np.ndarray, picture: np.ndarray, *, finite: bool) -> None:
        if not finite:
            self.not_finite.append(name)
        apart = psnr_db(reference.astype(np.float64), picture.astype(np.float64))
        if not self.psnr_db or apart < min(self.psnr_db):
            self.worst = name
        self.psnr_db.append(apart)
        self.levels_apart = max(self.levels_apart, round(float(np.abs(picture - reference).max()) * 255))

    def summary(self) -> dict[str, Any]:
        finite = [value for value in self.psnr_db if math.isfinite(value)]
        return {
            "pictures": len(self.psnr_db),
            "not_finite": self.not_finite,
            "worst_db": round(min(self.psnr_db), 2) if self.psnr_db else None,
            "worst_picture": self.worst,
            "mean_db": round(float(np.mean(finite)), 2) if finite else None,
            "under_55_db": sum(value < 55 for value in self.psnr_db),
            "levels_apart": self.levels_apart,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="+", help="FP32 first; what it is compared with after it")
    parser.add_argument("--pictures", type=Path, action="append", required=True)
    parser.add_argument("--side", type=int, default=384, help="most of a picture's height and width, px")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tallies = compared(arguments.graphs, arguments.pictures, arguments.side)
    for name, tally in tallies.items():
        screen.print(f"{name}: {tally.summary()}", soft_wrap=True)
    if arguments.json is not None:
        rows = {name: tally.summary() for name, tally in tallies.items()}
        body = {"machine": describe_machine(("onnx", "onnxruntime")), "side_px": arguments.side, "graphs": rows}
        arguments.json.write_text(json.dumps(body, indent=2) + "\n")


def compared(graphs: Sequence[Path], folders: Sequence[Path], side_px: int) -> dict[str, Tally]:
    """Every graph but the first on every picture that can be read."""
    network = network_of(load(graphs[0]))
    walkers = {path.name: Walker(load(path)) for path in graphs}
    tallies = {path.name: Tally() for path in graphs[1:]}
    for file in (file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()):
        pixels = middle(file, side_px)
        if pixels is None:
            continue
        reference, _ = ran(network, walkers[graphs[0].name], pixels)
        for name, tally in tallies.items():
            picture, finite = ran(network, walkers[name], pixels)
            tally.add(file.name, reference, picture, finite=finite)
        screen.print(file.name, *(f"{tally.psnr_db[-1]:.1f}" for tally in tallies.values() if tally.psnr_db))
    return tallies


def load(path: Path) -> Any:
    """An ONNX graph."""
    import onnx

    return onnx.load(path)


def middle(file: Path, side_px: int) -> PictureArray | None:
    """The middle of a picture, padded to what the network takes; nothing of files that are no pictures."""
    if file not in find_pictures(file.parent):
        return None
    try:
        pixels = read_picture(file).pixels
    except PictureError as error:
        screen.print(f"left out: {error}", soft_wrap=True)
        return None
    height, width = (min(length, side_px) for length in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pad_to(pixels[top : top + height, left : left + width], round_up(height), round_up(width))


def ran(network: PictureNetwork, walker: Walker, pixels: PictureArray) -> tuple[np.ndarray, bool]:
    """The picture that a graph gives, 0 to 1, and whether every tensor on the way was finite."""
    finite: list[bool] = []

    def look(step: Step) -> None:
        finite.extend(bool(np.isfinite(values.astype(np.float32)).all()) for values in step.float_outputs().values())

    outputs = walker.run({network.input: network.feed(pixels)}, look)
    return network.picture(outputs[network.output]), all(finite)


if __name__ == "__main__":
    main()
