"""The fixed blur set, version 1: what it makes of three known pictures stays what it was."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from msan.degradation.blurset import BLUR_SET_VERSION, BlurredPair, fixed_blur_set

# Length of the path; blurred[3::85, [5, 55]], row by row, as version 1 made it when it was new.
PINNED = {
    "a.png": (
        10.0,
        [
            (196, 65, 178),
            (190, 194, 47),
            (194, 74, 128),
            (187, 139, 131),
            (193, 145, 88),
            (187, 132, 213),
            (192, 140, 170),
            (187, 146, 42),
        ],
    ),
    "b.png": (
        18.0,
        [
            (218, 64, 180),
            (212, 195, 73),
            (50, 64, 140),
            (43, 139, 132),
            (132, 164, 90),
            (127, 136, 213),
            (216, 162, 171),
            (209, 160, 93),
        ],
    ),
    "c.png": (
        2.0,
        [
            (240, 62, 176),
            (233, 192, 47),
            (152, 46, 134),
            (147, 134, 131),
            (68, 25, 86),
            (58, 73, 211),
            (235, 89, 167),
            (231, 94, 39),
        ],
    ),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BlurredPair]:
    """Pairs of three pictures of 300×260 with edges, ramps and fine waves."""
    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[:300, :260]
    for number, name in enumerate(PINNED):
        waves = (rows * (3 + number) + columns * 5, rows * columns // 9, rows * 7 + columns * columns // 40)
        Image.fromarray(np.stack([wave % 256 for wave in waves], 2).astype(np.uint8)).save(folder / name)
    return {pair.name: pair for pair in fixed_blur_set(sorted(folder.glob("*.png")))}


def test_version_1_is_what_it_was(pairs: dict[str, BlurredPair]) -> None:
    assert BLUR_SET_VERSION == 1
    differences: list[int] = []
    for name, (length_px, levels) in PINNED.items():
        assert pairs[name].length_px == pytest.approx(length_px)
        assert pairs[name].blurred.shape == (260, 220, 3)
        ours = pairs[name].blurred[3::85, [5, 55]].reshape(-1, 3)
        differences += np.abs(ours.astype(int) - levels).ravel().tolist()
    # Another processor may round one of the 72 levels another way.
    assert sum(differences) <= 1
