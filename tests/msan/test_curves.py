"""``msan curves``: a run's log becomes a picture; what is no run is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msan.training.curves import CurvesError, save_curves


def run_with(folder: Path, lines: list[dict[str, object]]) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def losses(*values: float) -> list[dict[str, object]]:
    return [{"step": 20 * (i + 1), "loss": value, "lr": 1e-4} for i, value in enumerate(values)]


VALIDATION: dict[str, object] = {"step": 40, "validation": {"blurred_db": 25.0, "deblurred_db": 26.0}}


def coloured_share(path: Path, columns: slice) -> float:
    """Share of pixels that are neither grey nor white: lines."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)[:, columns]
    return float((pixels.max(2) - pixels.min(2) > 60).mean())


def test_loss_and_validation_are_drawn_side_by_side(tmp_path: Path) -> None:
    drawn, without = tmp_path / "with.png", tmp_path / "without.png"
    save_curves(run_with(tmp_path / "a", [*losses(0.05, 0.04, 0.03), VALIDATION]), drawn)
    save_curves(run_with(tmp_path / "b", losses(0.05, 0.04, 0.03)), without)
    with Image.open(drawn) as image:
        width = image.width
        assert width > 1.5 * image.height
    left, right = slice(0, width // 2), slice(width // 2, width)
    assert coloured_share(drawn, left) > 0
    assert coloured_share(drawn, right) > coloured_share(without, right)


def test_a_log_cut_short_in_its_last_line_is_drawn(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", losses(0.05, 0.04))
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 60, "lo')
    save_curves(run, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("lines", "target", "words"),
    [
        (None, "curves.png", "no training run"),
        ([], "curves.png", "no step yet"),
        ([{}], "no/c.png", "a folder that is there"),
        ([{}], "c.jpg", r"a \.png file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    lines: list[dict[str, object]] | None, target: str, words: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    if lines is not None:
        run_with(run, losses(0.05) if lines else [])
    with pytest.raises(CurvesError, match=words):
        save_curves(run, tmp_path / target)
