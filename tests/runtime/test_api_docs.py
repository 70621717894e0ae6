"""The examples of docs/api.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer

DOCS = Path(__file__).parents[2] / "docs" / "api.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.strip().splitlines()[-1][:40])
def test_an_example_runs_and_deblurs(example: str, deep_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bundle that inverts in the shipped one's place; each example leaves its input and result."""
    load = Deblurrer.load.__func__
    folder = deep_bundle_folder
    monkeypatch.setattr(
        Deblurrer, "load", classmethod(lambda cls, *_, **options: load(cls, folder, "ort-cpu", **options))
    )
    rng = np.random.default_rng(0)
    blurred: PictureArray = rng.integers(0, 256, (60, 80, 3), np.uint8)
    names: dict[str, object] = {
        "blurred": blurred,
        "blurred16": blurred.astype(np.uint16) * 257,
        "frames": lambda: iter([blurred, blurred]),
    }
    exec(example, names)
    if "sharp16" in names:
        assert np.array_equal(np.asarray(names["sharp16"]), 65535 - np.asarray(names["blurred16"]))
    else:
        assert np.array_equal(np.asarray(names["sharp"]), 255 - blurred)
