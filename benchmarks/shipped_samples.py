"""Makes the pairs that precision is decided on by default: squares of photographs, and the same squares blurred.

python benchmarks/shipped_samples.py PHOTOGRAPHS -o calib/msan_calib/samples
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from msan.degradation.blur import BlurSpec
from msan.degradation.degrade import degrade_picture
from msan_runtime.image import find_pictures, read_picture

COUNT = 12
SIDE_PX = 256
SPEC = BlurSpec(length_px=(2.0, 16.0), noise_levels=1.0, sharp_share=0.0, jpeg_share=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    for part in ("input", "target"):
        (arguments.output / part).mkdir(parents=True, exist_ok=True)
    for seed, file in enumerate(find_pictures(arguments.photographs)[:COUNT]):
        pixels = read_picture(file).pixels
        top, left = ((side - SIDE_PX) // 2 for side in pixels.shape[:2])
        blurred, _ = degrade_picture(pixels, SPEC, seed)
        name = f"{file.stem.removesuffix('-lossless')}.jpg"
        for part, picture in (("input", blurred), ("target", pixels)):
            crop = Image.fromarray(picture[top : top + SIDE_PX, left : left + SIDE_PX])
            crop.save(arguments.output / part / name, quality=95, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
