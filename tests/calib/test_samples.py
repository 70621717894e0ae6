"""Samples: the same for the same seed, apart for calibration and check, and kept until a file changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msan_calib import samples
from msan_calib.network import CalibrationError
from msan_calib.samples import SampleOptions, choose_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "photos"
    where.mkdir()
    for index in range(6):
        rng = np.random.default_rng(index)
        Image.fromarray(rng.integers(0, 40 * (index + 1), (60, 70, 3)).astype(np.uint8)).save(where / f"{index}.png")
    return where


OPTIONS = SampleOptions(count=4, size_px=32)


def test_the_shipped_pairs_are_known_to_the_truth() -> None:
    found = choose_samples()
    assert found.has_targets
    assert (len(found.calibration), len(found.held_out)) == (8, 4)
    assert all(sample.blurred.shape == (256, 256, 3) for sample in found.calibration)


def test_the_same_seed_gives_the_same_crops_with_and_without_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, cached = choose_samples(folder, OPTIONS), choose_samples(folder, OPTIONS)
    monkeypatch.setattr(samples, "cache_folder", lambda: tmp_path / "other")
    again = choose_samples(folder, OPTIONS)
    assert first.sha256 == cached.sha256 == again.sha256
    assert [s.name for s in first.calibration] == [s.name for s in cached.calibration]
    assert choose_samples(folder, SampleOptions(count=4, size_px=32, seed=1)).sha256 != first.sha256


def test_no_file_is_in_both_groups(folder: Path) -> None:
    found = choose_samples(folder, OPTIONS)
    files = [{sample.name.split()[0] for sample in group} for group in (found.calibration, found.held_out)]
    assert files[0]
    assert files[1]
    assert not files[0] & files[1]


def test_a_changed_file_is_read_again(folder: Path) -> None:
    first = choose_samples(folder, OPTIONS)
    for path in folder.iterdir():
        Image.fromarray(np.full((60, 70, 3), 9, np.uint8)).save(path)
        os.utime(path, ns=(1, 1))
    assert choose_samples(folder, OPTIONS).sha256 != first.sha256


def test_the_most_different_crops_are_chosen(tmp_path: Path) -> None:
    """Of many like pictures and one unlike the others, the latter is among the few that are taken."""
    where = tmp_path / "photos"
    where.mkdir()
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(100, 110, (64, 64, 3)).astype(np.uint8)).save(where / f"like{index:02}.png")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(where / "unlike.png")
    found = choose_samples(where, SampleOptions(count=2, size_px=32))
    names = [sample.name for sample in (*found.calibration, *found.held_out)]
    assert any(name.startswith("unlike") for name in names)


def test_pairs_are_matched_by_name_and_cut_alike(tmp_path: Path) -> None:
    where = tmp_path / "pairs"
    for part in ("input", "target"):
        (where / part).mkdir(parents=True)
    for index in range(4):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 200, (50, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(where / "input" / f"{index}.png")
        Image.fromarray(pixels + 10).save(where / "target" / f"{index}.png")
    found = choose_samples(where, OPTIONS)
    for sample in found.calibration:
        assert sample.sharp is not None
        assert np.array_equal(sample.sharp, sample.blurred + 10)
    (where / "target" / "2.png").unlink()
    with pytest.raises(CalibrationError, match=r"2\.png has no partner in"):
        choose_samples(where, OPTIONS)


def test_small_pictures_are_taken_whole_and_tiny_ones_left_out(tmp_path: Path) -> None:
    where = tmp_path / "photos"
    where.mkdir()
    Image.fromarray(np.zeros((20, 45, 3), np.uint8)).save(where / "small.png")
    Image.fromarray(np.zeros((5, 45, 3), np.uint8)).save(where / "tiny.png")
    found = choose_samples(where, OPTIONS)
    shapes = {sample.blurred.shape for sample in (*found.calibration, *found.held_out)}
    assert shapes == {(16, 32, 3)}
