"""Data sets as published and as found on disk, written in miniature; and what is wrong with them, in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msan.data.readers import (
    DatasetError,
    LayoutName,
    Pair,
    PairSet,
    Split,
    find_pair_sets,
    layout_of,
    picture_files,
    read_pair,
    sharp_files,
)
from msan_runtime.errors import PictureError

REALBLUR_FOLDERS = {
    "J": "RealBlur-J_ECC_IMCORR_centroid_itensity_ref",
    "R": "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref",
}


def touch(root: Path, *names: str) -> Path:
    """Empty files: finding pairs opens no picture."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def saved(path: Path, height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def gopro(root: Path) -> Path:
    for folder in ("blur", "blur_gamma", "sharp"):
        touch(root, *(f"test/GOPR0384_11_00/{folder}/{frame:06}.png" for frame in (2, 1)))
        touch(root, f"test/GOPR0385_11_01/{folder}/003011.png", f"train/GOPR0372_07_00/{folder}/000047.png")
    return root


def hide(root: Path) -> Path:
    touch(root, "test/test-long-shot/115fromGOPR1096.MP4.png", "test/test-long-shot/10fromGOPR1087.MP4.png")
    touch(root, "test/test-close-ups/1fromGOPR0950.png", "train/100fromGOPR1000.png")
    names = ("115fromGOPR1096.MP4", "10fromGOPR1087.MP4", "1fromGOPR0950", "100fromGOPR1000")
    return touch(root, *(f"GT/{name}.png" for name in names))


def realblur(root: Path, *, letters: str = "JR") -> Path:
    """Scene 230 is the test split, scene 001 the train split; each line ends in a blank, as published."""
    for letter in letters:
        folder = REALBLUR_FOLDERS[letter]
        for split, scene in (("test", "scene230"), ("train", "scene001")):
            lines: list[str] = []
            for number in (7, 12, 2):
                gt, blur = f"{folder}/{scene}/gt/gt_{number}.png", f"{folder}/{scene}/blur/blur_{number}.png"
                touch(root, gt, blur)
                lines.append(f"{gt} {blur} \n")
            (root / f"RealBlur_{letter}_{split}_list.txt").write_text("".join(lines))
    return root


def without_lists(root: Path) -> Path:
    for file in root.glob("*.txt"):
        file.unlink()
    return root


def names_of(pair_set: PairSet) -> list[str]:
    return [pair.name for pair in pair_set.pairs]


def only(root: Path, layout: LayoutName | None = None, split: Split = "test") -> PairSet:
    (pair_set,) = find_pair_sets(root, layout=layout, split=split)
    return pair_set


def test_gopro_is_read_from_its_folder_and_from_the_one_that_holds_it(tmp_path: Path) -> None:
    base = gopro(tmp_path / "GOPRO_Large")
    for root in (base, tmp_path):
        assert layout_of(root) == "gopro"
        pair_set = only(root)
        assert (pair_set.name, pair_set.layout, pair_set.split) == ("GoPro", "gopro", "test")
        assert names_of(pair_set) == ["GOPR0384_11_00/000001", "GOPR0384_11_00/000002", "GOPR0385_11_01/003011"]
        assert pair_set.pairs[2].blurred == base / "test/GOPR0385_11_01/blur/003011.png"
        assert pair_set.pairs[2].sharp == base / "test/GOPR0385_11_01/sharp/003011.png"


def test_gopro_gamma_takes_the_other_blurred_pictures(tmp_path: Path) -> None:
    pair_set = only(gopro(tmp_path), "gopro-gamma")
    assert (pair_set.name, pair_set.layout) == ("GoPro (gamma)", "gopro-gamma")
    assert {pair.blurred.parent.name for pair in pair_set.pairs} == {"blur_gamma"}
    assert {pair.sharp.parent.name for pair in pair_set.pairs} == {"sharp"}


def test_gopro_with_gamma_alone_is_known_by_it(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/blur_gamma/1.png", "train/a/sharp/1.png")
    assert layout_of(tmp_path) == "gopro-gamma"
    assert only(tmp_path, split="train").name == "GoPro (gamma)"


def test_the_train_split_holds_other_pairs(tmp_path: Path) -> None:
    assert names_of(only(gopro(tmp_path / "g"), split="train")) == ["GOPR0372_07_00/000047"]
    (train,) = find_pair_sets(hide(tmp_path / "h"), split="train")
    assert (train.name, train.split, names_of(train)) == ("HIDE", "train", ["100fromGOPR1000"])
    realblur_j, _ = find_pair_sets(realblur(tmp_path / "r"), split="train")
    assert names_of(realblur_j) == ["scene001/12", "scene001/2", "scene001/7"]


def test_hide_has_two_test_sets_long_shots_first(tmp_path: Path) -> None:
    base = hide(tmp_path / "HIDE_dataset")
    for root in (base, tmp_path):
        assert layout_of(root) == "hide"
        long_shot, close_ups = find_pair_sets(root)
        assert (long_shot.name, long_shot.split, close_ups.name) == ("HIDE I", "test", "HIDE II")
        assert names_of(long_shot) == ["10fromGOPR1087.MP4", "115fromGOPR1096.MP4"]
        assert close_ups.pairs == (
            Pair(
                name="1fromGOPR0950",
                blurred=base / "test/test-close-ups/1fromGOPR0950.png",
                sharp=base / "GT/1fromGOPR0950.png",
            ),
        )


def test_realblur_is_read_by_its_lists_ground_truth_first(tmp_path: Path) -> None:
    base = realblur(tmp_path / "RealBlur")
    for root in (base, tmp_path):
        assert layout_of(root) == "realblur-j"
        sets = find_pair_sets(root)
        assert [(one.name, one.layout, one.split) for one in sets] == [
            ("RealBlur-J", "realblur-j", "test"),
            ("RealBlur-R", "realblur-r", "test"),
        ]
        assert names_of(sets[1]) == ["scene230/12", "scene230/2", "scene230/7"]
        scene = base / REALBLUR_FOLDERS["R"] / "scene230"
        assert sets[1].pairs[1].blurred == scene / "blur/blur_2.png"
        assert sets[1].pairs[1].sharp == scene / "gt/gt_2.png"


def test_one_realblur_of_two_can_be_asked_for(tmp_path: Path) -> None:
    assert only(realblur(tmp_path), "realblur-r").name == "RealBlur-R"


def test_a_realblur_that_was_not_unpacked_is_left_out(tmp_path: Path) -> None:
    realblur(tmp_path, letters="R")
    (tmp_path / "RealBlur_J_test_list.txt").write_text("x/scene1/gt/gt_1.png x/scene1/blur/blur_1.png\n")
    assert layout_of(tmp_path) == "realblur-r"
    assert only(tmp_path).name == "RealBlur-R"


def test_realblur_without_lists_is_every_scene_under_another_name(tmp_path: Path) -> None:
    root = without_lists(realblur(tmp_path, letters="J"))
    pair_set = only(root)
    assert (pair_set.name, pair_set.layout, pair_set.split) == ("RealBlur-J (all)", "realblur-j", None)
    assert names_of(pair_set) == [f"scene{scene}/{number}" for scene in ("001", "230") for number in (12, 2, 7)]
    assert pair_set.pairs[0].sharp == root / REALBLUR_FOLDERS["J"] / "scene001/gt/gt_12.png"
    assert pair_set.pairs[0].blurred == root / REALBLUR_FOLDERS["J"] / "scene001/blur/blur_12.png"


def test_realblur_without_lists_has_no_train_split(tmp_path: Path) -> None:
    root = without_lists(realblur(tmp_path, letters="J"))
    with pytest.raises(DatasetError, match=r"has no RealBlur_J_train_list\.txt, which alone tells .* train pairs"):
        find_pair_sets(root, split="train")


def test_realblur_with_the_other_splits_list_is_not_taken_whole(tmp_path: Path) -> None:
    root = realblur(tmp_path, letters="J")
    (root / "RealBlur_J_test_list.txt").unlink()
    with pytest.raises(DatasetError, match=r"has no RealBlur_J_test_list\.txt"):
        find_pair_sets(root)


def test_two_folders_of_one_realblur_need_its_list(tmp_path: Path) -> None:
    root = without_lists(realblur(tmp_path, letters="J"))
    touch(root, "RealBlur-J_other/scene230/gt/gt_7.png")
    with pytest.raises(DatasetError, match=r"2 folders of RealBlur-J .*RealBlur-J_other.*add its list"):
        find_pair_sets(root)


@pytest.mark.parametrize(
    "line",
    [
        "J/scene230/gt/gt_7.png",
        "J/scene230/blur/blur_7.png J/scene230/gt/gt_7.png",
        "J/scene230/gt/gt_7.png J/scene230/blur/blur_2.png",
        "J/scene230/gt/gt_7.png J/scene231/blur/blur_7.png",
        "J/scene230/gt/gt_7.png J/scene230/blur/blur_7.png 3",
    ],
)
def test_a_line_of_another_form_is_named(line: str, tmp_path: Path) -> None:
    root = realblur(tmp_path, letters="J")
    with (root / "RealBlur_J_test_list.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(DatasetError, match=rf"RealBlur_J_test_list\.txt, line 5: expected .*not '{line}'"):
        find_pair_sets(root)


def test_a_list_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    root = realblur(tmp_path, letters="J")
    file = root / "RealBlur_J_test_list.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(only(root).pairs) == 3


def test_a_list_that_names_missing_pictures_is_refused(tmp_path: Path) -> None:
    root = realblur(tmp_path, letters="J")
    scene = root / REALBLUR_FOLDERS["J"] / "scene230"
    (scene / "blur/blur_12.png").unlink()
    (scene / "gt/gt_2.png").unlink()
    with pytest.raises(
        DatasetError, match=r"test_list\.txt names 2 pictures that are not there, first: .*blur_12\.png"
    ):
        find_pair_sets(root)


def test_a_list_that_names_a_pair_twice_is_refused(tmp_path: Path) -> None:
    root = realblur(tmp_path, letters="J")
    file = root / "RealBlur_J_test_list.txt"
    file.write_text(file.read_text() * 2)
    with pytest.raises(DatasetError, match="RealBlur-J has two pairs named scene230/12"):
        find_pair_sets(root)


def test_a_list_that_is_no_text_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    root = realblur(tmp_path, letters="J")
    file = root / "RealBlur_J_test_list.txt"
    file.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DatasetError, match=r"test_list\.txt is not a text file"):
        find_pair_sets(root)
    file.write_bytes(b"\n")
    with pytest.raises(DatasetError, match="RealBlur-J has no pair of pictures"):
        find_pair_sets(root)


@pytest.mark.parametrize("folders", [("input", "target"), ("blur", "sharp")])
def test_flat_pairs_match_by_path_whatever_the_suffix(folders: tuple[str, str], tmp_path: Path) -> None:
    blurred, sharp = (tmp_path / "mine" / folder for folder in folders)
    touch(blurred, "b.JPG", "deep/a.st_frame-2.jpeg", "a.webp")
    touch(sharp, "a.png", "b.png", "deep/a.st_frame-2.tif")
    assert layout_of(tmp_path / "mine") == "pairs"
    assert only(tmp_path / "mine") == PairSet(
        name="mine",
        layout="pairs",
        split=None,
        pairs=(
            Pair(name="a", blurred=blurred / "a.webp", sharp=sharp / "a.png"),
            Pair(name="b", blurred=blurred / "b.JPG", sharp=sharp / "b.png"),
            Pair(
                name="deep/a.st_frame-2",
                blurred=blurred / "deep/a.st_frame-2.jpeg",
                sharp=sharp / "deep/a.st_frame-2.tif",
            ),
        ),
    )


def test_flat_pairs_under_train_and_test_are_of_that_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/input/1.png", "train/target/1.png", "test/input/2.png", "test/target/2.png")
    assert layout_of(tmp_path) == "pairs"
    train, test = only(tmp_path, split="train"), only(tmp_path)
    assert (train.name, train.split, names_of(train)) == (tmp_path.name, "train", ["1"])
    assert (test.name, test.split, names_of(test)) == (tmp_path.name, "test", ["2"])


def test_a_set_of_pairs_is_named_by_its_folder_also_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "blur/1.png", "sharp/1.png")
    monkeypatch.chdir(tmp_path)
    assert only(Path()).name == tmp_path.name
    monkeypatch.chdir(tmp_path / "blur")
    assert only(Path("..")).name == tmp_path.name


def test_pairs_are_sorted_by_name_and_not_by_file(tmp_path: Path) -> None:
    touch(tmp_path, "blur/a.png", "blur/a-2.png", "sharp/a.png", "sharp/a-2.png")
    assert [file.stem for file in picture_files(tmp_path / "blur")] == ["a-2", "a"]
    assert names_of(only(tmp_path)) == ["a", "a-2"]


def test_a_scene_of_gopro_is_a_set_of_pairs(tmp_path: Path) -> None:
    scene = gopro(tmp_path) / "test/GOPR0384_11_00"
    assert layout_of(scene) == "pairs"
    assert [pair.blurred.parent.name for pair in only(scene).pairs] == ["blur", "blur"]


def test_hidden_files_and_what_is_no_picture_are_not_looked_at(tmp_path: Path) -> None:
    junk = ("._1.png", ".cache/1.png", "Thumbs.db", "notes.txt", "1.png.part")
    for root, folders in (("flat", ("input", "target")), ("g/test/scene", ("blur", "sharp"))):
        touch(tmp_path / root, f"{folders[0]}/1.png", f"{folders[1]}/1.png", *(f"{folders[0]}/{name}" for name in junk))
    touch(tmp_path / "g/test/.hidden", "blur/9.png", "sharp/8.png")
    touch(tmp_path / "h", "train/1.png", "GT/1.png", *(f"train/{name}" for name in junk))
    assert names_of(only(tmp_path / "flat")) == ["1"]
    assert names_of(only(tmp_path / "g")) == ["scene/1"]
    assert names_of(only(tmp_path / "h", split="train")) == ["1"]
    assert picture_files(tmp_path / "flat/input") == [tmp_path / "flat/input/1.png"]


def test_a_folder_under_a_hidden_one_is_not_hidden(tmp_path: Path) -> None:
    root = touch(tmp_path / ".data/mine", "input/1.png", "target/1.png")
    assert names_of(only(root)) == ["1"]
    assert picture_files(root / "input") == [root / "input/1.png"]


def test_blurred_pictures_without_partner_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"input/{n}.png" for n in range(5)), "target/0.png", "target/3.png")
    with pytest.raises(DatasetError, match=r"3 of 5 blurred pictures under .* no sharp partner, first: .*input/1\.png"):
        find_pair_sets(tmp_path)


def test_sharp_pictures_without_partner_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    root = gopro(tmp_path)
    (root / "test/GOPR0384_11_00/blur/000002.png").unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 3 sharp pictures under .* no blurred partner, first: .*/sharp/000002\.png"
    ):
        find_pair_sets(root)


def test_hide_needs_the_sharp_partners_of_the_split_asked_for_alone(tmp_path: Path) -> None:
    root = hide(tmp_path)
    (root / "GT/100fromGOPR1000.png").unlink()
    assert len(find_pair_sets(root)) == 2
    with pytest.raises(DatasetError, match=r"1 of 1 blurred pictures under .*train have no sharp partner"):
        find_pair_sets(root, split="train")


def test_unlisted_realblur_pictures_need_partners_too(tmp_path: Path) -> None:
    root = without_lists(realblur(tmp_path, letters="J"))
    (root / REALBLUR_FOLDERS["J"] / "scene230/gt/gt_2.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 blurred pictures .* no sharp partner, first: .*blur_2\.png"):
        find_pair_sets(root)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "input/a.png", "target/a.png", "target/a.jpg")
    with pytest.raises(DatasetError, match=r"a\.jpg and .*a\.png differ in their suffix only"):
        find_pair_sets(tmp_path)


names = st.sets(st.text("abc", min_size=1, max_size=2), max_size=5)


@settings(max_examples=40, deadline=None)
@given(names, names)
def test_pairs_are_found_exactly_if_both_folders_hold_the_same_names(blurred: set[str], sharp: set[str]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for inner, held in (("input", blurred), ("target", sharp)):
            (root / inner).mkdir()
            touch(root / inner, *(f"{name}.png" for name in held))
        if blurred == sharp and blurred:
            assert names_of(only(root)) == sorted(blurred)
        else:
            lonely = blurred - sharp or sharp - blurred
            counted = f"{len(lonely)} of " if blurred and (sharp or blurred - sharp) else "no (blurred|sharp) JPEG"
            with pytest.raises(DatasetError, match=counted):
                find_pair_sets(root)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", touch(tmp_path, "file.png") / "file.png"):
        with pytest.raises(DatasetError, match=rf"no folder of pairs at .*{path.name}"):
            find_pair_sets(path)
        assert layout_of(path) is None


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    touch(tmp_path, ".DS_Store")
    with pytest.raises(DatasetError, match=r"the folder of pairs .* is empty"):
        find_pair_sets(tmp_path)


def test_a_folder_of_no_layout_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    touch(tmp_path, "holiday/1.png", "input/1.png")
    assert layout_of(tmp_path) is None
    with pytest.raises(DatasetError, match=r"no pairs found under .*: expected input and target, .* GoPro, HIDE"):
        find_pair_sets(tmp_path)


@pytest.mark.parametrize("layout", ["gopro", "gopro-gamma", "hide", "realblur-j", "realblur-r"])
def test_another_layout_than_asked_for_is_refused(layout: LayoutName, tmp_path: Path) -> None:
    touch(tmp_path, "input/1.png", "target/1.png")
    with pytest.raises(DatasetError, match=f"is not laid out as {layout}: expected .*(sharp|GT|gt)"):
        find_pair_sets(tmp_path, layout=layout)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_is_not_there_is_refused(split: Split, tmp_path: Path) -> None:
    other = {"train": "test", "test": "train"}[split]
    touch(tmp_path, f"flat/{other}/input/1.png", f"flat/{other}/target/1.png")
    touch(tmp_path, f"g/{other}/a/blur/1.png", f"g/{other}/a/sharp/1.png")
    with pytest.raises(DatasetError, match=f"flat has no {split} pairs"):
        find_pair_sets(tmp_path / "flat", split=split)
    with pytest.raises(DatasetError, match=f"no blurred JPEG, .* under .*g/{split}"):
        find_pair_sets(tmp_path / "g", split=split)


def test_gamma_that_was_not_unpacked_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "test/a/blur/1.png", "test/a/sharp/1.png")
    with pytest.raises(DatasetError, match=r"no blurred .* under .*test"):
        find_pair_sets(tmp_path, layout="gopro-gamma")


def test_what_is_wrong_with_a_data_set_fits_one_line_and_exits_with_2(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        find_pair_sets(touch(tmp_path, "input/1.png"), layout="realblur-j")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_set_of_no_pairs_or_of_two_of_one_name_is_refused(tmp_path: Path) -> None:
    pair = Pair(name="a", blurred=tmp_path / "b.png", sharp=tmp_path / "s.png")
    with pytest.raises(DatasetError, match="mine has no pair"):
        PairSet(name="mine", layout="pairs", split=None, pairs=())
    with pytest.raises(DatasetError, match="mine has two pairs named a"):
        PairSet(name="mine", layout="pairs", split=None, pairs=(pair, pair))


def test_a_pair_is_decoded_blurred_first(tmp_path: Path) -> None:
    pair = Pair(name="a", blurred=tmp_path / "b.png", sharp=tmp_path / "s.tif")
    written = saved(pair.blurred, seed=1), saved(pair.sharp, seed=2)
    for read, expected in zip(read_pair(pair), written, strict=True):
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)


def test_a_pair_of_two_sizes_is_refused_with_both(tmp_path: Path) -> None:
    pair = Pair(name="a", blurred=tmp_path / "b.png", sharp=tmp_path / "s.png")
    saved(pair.blurred, 6, 9)
    saved(pair.sharp, 9, 6)
    with pytest.raises(DatasetError, match=r"b\.png is 6×9 px but its sharp partner .*s\.png is 9×6 px"):
        read_pair(pair)


def test_a_pair_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    pair = Pair(name="a", blurred=tmp_path / "b.png", sharp=tmp_path / "s.png")
    saved(pair.blurred)
    touch(tmp_path, "s.png")
    with pytest.raises(PictureError, match=r"s\.png"):
        read_pair(pair)


def test_pictures_are_found_in_all_folders_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a/b/y.webp", "c.tif", "a.jpg"]
    touch(tmp_path, *names, "notes.txt", "a/.hidden", "folder.png/inside.txt")
    assert picture_files(tmp_path) == sorted(tmp_path / name for name in names)


def test_no_folder_of_pictures_and_none_in_it_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "pictures/._a.png", "pictures/notes.txt", "a.png")
    for path in (tmp_path / "nowhere", tmp_path / "a.png"):
        with pytest.raises(DatasetError, match=rf"no folder of pictures at .*{path.name}"):
            picture_files(path)
    with pytest.raises(DatasetError, match=r"no JPEG, PNG, WebP or TIFF picture under .*pictures"):
        picture_files(tmp_path / "pictures")


def test_readers_and_metrics_import_without_torch_and_picture_libraries() -> None:
    code = """
import sys
for name in ("torch", "cv2", "scipy", "skimage"):
    sys.modules[name] = None
import msan.evaluation.alignment, msan.evaluation.metrics, msan.data.readers, msan.evaluation.ssim
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("blurred", ["GOPR0001/blur", "GOPR0001/blur_gamma", "deep/input"])
def test_a_folder_that_holds_blurred_pictures_is_not_one_of_sharp_ones(blurred: str, tmp_path: Path) -> None:
    for name in (blurred, "sharp"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    with pytest.raises(DatasetError, match="holds blurred pictures"):
        sharp_files(tmp_path)
    assert len(sharp_files(tmp_path / "sharp")) == 1
