"""Sets of pictures to measure on, and results of other networks matched to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msan.data.readers import DatasetError
from msan.evaluation.results import match_results
from msan.evaluation.sets import BlurredPictures, EvaluationSet, find_evaluation_sets
from msan_runtime.contract import PictureArray
from msan_runtime.errors import PictureError


def save(path: Path, picture: PictureArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def noise(seed: int, height: int = 12, width: int = 16) -> PictureArray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def gopro(tmp_path: Path) -> Path:
    """Two scenes with pictures of the same names."""
    root = tmp_path / "GOPRO_Large"
    for seed, path in enumerate(("A/{}/000001.png", "A/{}/000002.png", "B/{}/000001.png")):
        for kind in ("blur", "sharp"):
            save(root / "test" / path.format(kind), noise(2 * seed + (kind == "sharp")))
    return root


@pytest.fixture
def hide(tmp_path: Path) -> Path:
    root = tmp_path / "HIDE_dataset"
    for name, folder in (("1fromA", "test-close-ups"), ("2fromA", "test-long-shot")):
        save(root / "test" / folder / f"{name}.png", noise(1))
        save(root / "GT" / f"{name}.png", noise(2))
    return root


@pytest.fixture
def realblur(tmp_path: Path) -> Path:
    root = tmp_path / "RealBlur"
    for letter in "JR":
        folder = f"RealBlur-{letter}_ECC/scene001"
        save(root / folder / "gt" / "gt_1.png", noise(1))
        save(root / folder / "blur" / "blur_1.png", noise(2))
        (root / f"RealBlur_{letter}_test_list.txt").write_text(f"{folder}/gt/gt_1.png {folder}/blur/blur_1.png\n")
    return root


def only(root: Path) -> EvaluationSet:
    (found,) = find_evaluation_sets([root])
    return found


def test_data_sets_are_recognised_in_the_order_given(gopro: Path, hide: Path, realblur: Path) -> None:
    found = find_evaluation_sets([hide, gopro, realblur])
    assert [one.name for one in found] == ["HIDE I", "HIDE II", "GoPro", "RealBlur-J", "RealBlur-R"]
    assert {one.split for one in found} == {"test"}
    assert [one.root for one in found] == [hide, hide, gopro, realblur, realblur]


def test_pairs_are_read_as_they_are_on_disk(gopro: Path) -> None:
    pairs = list(only(gopro).pairs())
    assert [pair.name for pair in pairs] == ["A/000001", "A/000002", "B/000001"]
    for seed, pair in enumerate(pairs):
        np.testing.assert_array_equal(pair.blurred, noise(2 * seed))
        np.testing.assert_array_equal(pair.sharp, noise(2 * seed + 1))


def test_a_limit_takes_the_first_pictures_but_counts_all(gopro: Path) -> None:
    (found,) = find_evaluation_sets([gopro], limit=2)
    assert [pair.name for pair in found.pairs()] == ["A/000001", "A/000002"]
    assert [name for name, _ in found.files] == ["A/000001", "A/000002"]
    assert len(found.all_files) == 3
    with pytest.raises(DatasetError, match="at least one picture"):
        find_evaluation_sets([gopro], limit=0)


def test_plain_pictures_are_the_fixed_blur_set(tmp_path: Path) -> None:
    for seed, name in enumerate("bca"):
        save(tmp_path / "plain" / f"{name}.png", noise(seed, 70, 72))
    found = only(tmp_path / "plain")
    assert isinstance(found, BlurredPictures)
    assert (found.name, found.layout, found.split, found.version) == ("plain", "blur-set", None, 1)
    pairs = list(found.pairs())
    assert [pair.name for pair in pairs] == ["a.png", "b.png", "c.png"]
    assert [pair.file.name for pair in pairs] == ["a.png", "b.png", "c.png"]
    assert sorted(pair.length_px or 0.0 for pair in pairs) == pytest.approx([2, 10, 18])
    (first,) = find_evaluation_sets([tmp_path / "plain"], limit=1)
    (pair,) = first.pairs()
    # The blur is that of the whole set: a limit changes no figure of the pictures that are left.
    np.testing.assert_array_equal(pair.blurred, pairs[0].blurred)


def test_a_layout_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    for folder in ("input", "target"):
        save(tmp_path / "set" / folder / "a.png", noise(1, 70, 72))
    assert only(tmp_path / "set").layout == "pairs"
    (forced,) = find_evaluation_sets([tmp_path / "set"], layout="blur-set")
    assert forced.layout == "blur-set"
    assert len(forced.all_files) == 2
    with pytest.raises(DatasetError, match="not laid out as gopro"):
        find_evaluation_sets([tmp_path / "set"], layout="gopro")


def test_two_sets_of_one_name_are_refused(gopro: Path) -> None:
    with pytest.raises(DatasetError, match="both give a set named GoPro"):
        find_evaluation_sets([gopro, gopro.parent])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no folder of pictures at .*missing"):
        find_evaluation_sets([tmp_path / "missing"])


def test_a_bad_picture_stops_unless_note_is_taken(gopro: Path) -> None:
    (gopro / "test/A/sharp/000001.png").write_bytes(b"no picture")
    save(gopro / "test/A/blur/000002.png", noise(0, 12, 8))
    with pytest.raises(PictureError, match=r"A/sharp/000001\.png"):
        list(only(gopro).pairs())
    bad: dict[str, str] = {}
    pairs = list(only(gopro).pairs(on_bad=bad.__setitem__))
    assert [pair.name for pair in pairs] == ["B/000001"]
    assert list(bad) == ["A/000001", "A/000002"]
    assert "12×8" in bad["A/000002"]


NAMES = {
    "names in the set": ("A/000001.png", "A/000002.png", "B/000001.png"),
    "other suffixes": ("A/000001.jpg", "A/000002.webp", "B/000001.tif"),
    "paths in the data set": ("test/A/blur/000001.png", "test/A/blur/000002.png", "test/B/blur/000001.png"),
    "ends of these": ("A/blur/000001.png", "A/blur/000002.png", "B/blur/000001.png"),
    "flat with _": ("A_000001.png", "A_000002.png", "B_000001.png"),
    "flat with -": ("A-000001.png", "A-000002.png", "B-000001.png"),
    "in a folder of the set's name": ("GoPro/A/000001.png", "GoPro/A/000002.png", "GoPro/B/000001.png"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_results_are_found_under_their_usual_names(names: tuple[str, ...], gopro: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        save(tmp_path / "out" / name, noise(seed))
    chosen = only(gopro)
    found = match_results(tmp_path / "out", chosen)
    assert [found[file] for _, file in chosen.files] == [tmp_path / "out" / name for name in names]


@pytest.mark.parametrize("name", ["scene001/blur_1", "scene001_blur_1", "blur_1", "scene001/blur/blur_1"])
def test_results_of_realblur_are_named_as_its_blurred_pictures(name: str, realblur: Path, tmp_path: Path) -> None:
    save(tmp_path / "out" / f"{name}.png", noise(0))
    for chosen in find_evaluation_sets([realblur]):
        assert list(match_results(tmp_path / "out", chosen).values()) == [tmp_path / "out" / f"{name}.png"]


def test_a_name_that_means_two_pictures_matches_neither(gopro: Path, tmp_path: Path) -> None:
    """000001 alone is in both scenes; 000002 is in one."""
    for name in ("000001.png", "000002.png"):
        save(tmp_path / "out" / name, noise(0))
    with pytest.raises(DatasetError, match=r"2 of 3 results for GoPro are missing in .*out: A/000001, B/000001"):
        match_results(tmp_path / "out", only(gopro))


def test_a_limit_does_not_make_a_name_mean_one_picture(gopro: Path, tmp_path: Path) -> None:
    save(tmp_path / "out" / "000001.png", noise(0))
    (chosen,) = find_evaluation_sets([gopro], limit=1)
    with pytest.raises(DatasetError, match="1 of 1 results"):
        match_results(tmp_path / "out", chosen)


def test_missing_results_are_named_and_counted(tmp_path: Path) -> None:
    for name in "abcdefg":
        for folder in ("input", "target"):
            save(tmp_path / "set" / folder / f"{name}.png", noise(1))
    save(tmp_path / "out" / "d.png", noise(1))
    with pytest.raises(DatasetError, match=r"6 of 7 results for set are missing in .*out: a, b, c, …$"):
        match_results(tmp_path / "out", only(tmp_path / "set"))


def test_two_results_of_one_picture_are_refused(gopro: Path, tmp_path: Path) -> None:
    for name in ("A/000001.png", "A/000001.jpg", "A/000002.png", "B/000001.png"):
        save(tmp_path / "out" / name, noise(0))
    with pytest.raises(DatasetError, match=r"000001\.jpg and .*000001\.png could both be the result of A/000001"):
        match_results(tmp_path / "out", only(gopro))
