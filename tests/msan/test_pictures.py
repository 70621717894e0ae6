"""Training pictures: decoded the same from memory and disk, passed over when they are damaged, and weighed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from msan.data.pictures import PairPictures, PictureStore, SharpPictures, fits_in_memory, large_enough
from msan.data.readers import DatasetError, Pair, find_pair_sets, picture_files

MakePictures = Callable[..., Path]


def saved(path: Path, height: int, width: int, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def sharp(*files: Path, long_side_px: int = 0) -> SharpPictures:
    return SharpPictures(files=files, long_side_px=long_side_px)


@pytest.fixture
def damaged(tmp_path: Path, make_pictures: MakePictures) -> Path:
    """Five pictures, of which the second and the third cannot be decoded."""
    folder = make_pictures(tmp_path / "damaged", 5)
    (folder / "001.png").write_bytes(b"no picture")
    data = (folder / "002.png").read_bytes()
    (folder / "002.png").write_bytes(data[: len(data) // 2])
    return folder


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_pictures_of_every_kind_become_rgb_tensors(mode: str, tmp_path: Path) -> None:
    (picture,) = sharp(saved(tmp_path / "a.png", 10, 12, mode)).load(0)
    assert (picture.shape, picture.dtype) == ((3, 10, 12), torch.uint8)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_a_pair_is_its_blurred_and_its_sharp_picture(pair_folder: Path) -> None:
    (pair_set,) = find_pair_sets(pair_folder)
    blurred, target = PairPictures(pairs=pair_set.pairs).load(1)
    for tensor, file in ((blurred, pair_set.pairs[1].blurred), (target, pair_set.pairs[1].sharp)):
        with Image.open(file) as image:
            assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))


def test_a_pair_of_unequal_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    pair = Pair(name="a", blurred=saved(tmp_path / "b.png", 40, 50), sharp=saved(tmp_path / "s.png", 40, 48))
    with pytest.raises(DatasetError, match=r"b\.png is 40×50 px but .*s\.png is 40×48 px"):
        PairPictures(pairs=[pair]).load(0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(8, 150), st.integers(8, 150), st.just(0) | st.integers(30, 120), st.sampled_from([1, 6]))
@example(92, 184, 25, 1)  # Pillow's thumbnail would make it 13×25
def test_the_size_told_by_the_head_is_the_size_decoded(
    tmp_path: Path, height: int, width: int, long_side_px: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(tmp_path / "a.png", exif=exif)
    source = sharp(tmp_path / "a.png", long_side_px=long_side_px)
    (picture,) = source.load(0)
    decoded = tuple(picture.shape[1:])
    assert sorted(source.size_px(0)) == sorted(decoded)
    if long_side_px:
        assert max(decoded) == min(long_side_px, max(height, width))
        assert min(decoded) == pytest.approx(min(height, width) * max(decoded) / max(height, width), abs=0.5)
    else:
        assert sorted(decoded) == sorted((height, width))


def test_a_shrunk_picture_keeps_its_mean(tmp_path: Path) -> None:
    (whole,) = sharp(saved(tmp_path / "a.png", 100, 80)).load(0)
    (shrunk,) = sharp(tmp_path / "a.png", long_side_px=50).load(0)
    assert shrunk.shape == (3, 50, 40)
    assert float(shrunk.float().mean()) == pytest.approx(float(whole.float().mean()), abs=1)


@pytest.mark.parametrize("preload", [True, False])
def test_damaged_pictures_are_passed_over_and_named(damaged: Path, preload: bool) -> None:
    store = PictureStore(sharp(*picture_files(damaged)))
    if preload:
        store.preload()
    fetched = store.fetch(1)
    assert fetched.index == 3
    assert torch.equal(fetched.pictures[0], store.fetch(3).pictures[0])
    assert list(fetched.bad) == [str(damaged / "001.png"), str(damaged / "002.png")]
    assert "001.png is not a JPEG, PNG, WebP or TIFF picture" in fetched.bad[str(damaged / "001.png")]
    assert "002.png cannot be decoded" in fetched.bad[str(damaged / "002.png")]
    assert store.fetch(0).bad == {}


def test_the_last_picture_is_followed_by_the_first(damaged: Path) -> None:
    (damaged / "004.png").write_bytes(b"")
    fetched = PictureStore(sharp(*picture_files(damaged))).fetch(4)
    assert (fetched.index, list(fetched.bad)) == (0, [str(damaged / "004.png")])


def test_only_damaged_pictures_are_an_error_that_names_one(damaged: Path) -> None:
    store = PictureStore(sharp(damaged / "001.png", damaged / "002.png"))
    with pytest.raises(DatasetError, match=r"none of 2 pictures can be decoded. The first: .*002\.png cannot be"):
        store.fetch(1)


def test_what_was_preloaded_is_not_read_again(tmp_path: Path, make_pictures: MakePictures) -> None:
    folder = make_pictures(tmp_path / "pictures", 3)
    store = PictureStore(sharp(*picture_files(folder)))
    fresh = [store.fetch(index).pictures[0] for index in range(3)]
    done: list[int] = []
    store.preload(done.append)
    assert done == [1, 2, 3]
    shutil.rmtree(folder)
    for index in range(3):
        assert torch.equal(store.fetch(index).pictures[0], fresh[index])


def test_decoded_bytes_are_estimated_from_sizes(tmp_path: Path, pair_folder: Path) -> None:
    files = [saved(tmp_path / f"{i}.png", 10, 20 + i % 2) for i in range(130)]
    assert PictureStore(sharp(*files)).bytes_decoded() == pytest.approx(130 * 3 * 10 * 20.5, rel=0.03)
    (pair_set,) = find_pair_sets(pair_folder)
    assert PictureStore(PairPictures(pairs=pair_set.pairs)).bytes_decoded() == 2 * 2 * 3 * 40 * 48


def test_pictures_fit_if_they_leave_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}[name])
    assert fits_in_memory(1000 * 4096 // 2)
    assert not fits_in_memory(1000 * 4096 // 2 + 1)


def test_the_large_enough_have_no_side_too_short(damaged: Path, tmp_path: Path) -> None:
    files = [saved(tmp_path / "a.png", 32, 90), saved(tmp_path / "b.png", 31, 90), saved(tmp_path / "c.png", 90, 31)]
    assert large_enough(sharp(*files), 32) == [0]
    # One that cannot even be opened stays in, so that it is named when it is to be used.
    assert large_enough(sharp(files[1], damaged / "001.png", files[0]), 32) == [1, 2]
    assert large_enough(sharp(*files, long_side_px=44), 16) == [0]


class TestFingerprint:
    def test_it_stays_where_the_folder_is_moved(self, tmp_path: Path, sharp_folder: Path) -> None:
        copy = tmp_path / "elsewhere"
        shutil.copytree(sharp_folder, copy)
        ours, theirs = (PictureStore(sharp(*picture_files(f))).fingerprint() for f in (sharp_folder, copy))
        assert ours == theirs
        assert len(ours) == 3 * 8

    def test_another_picture_changes_its_own_digits_only(self, tmp_path: Path, make_pictures: MakePictures) -> None:
        folder = make_pictures(tmp_path / "pictures", 3)
        store = PictureStore(sharp(*picture_files(folder)))
        before = store.fingerprint()
        saved(folder / "001.png", 56, 64)
        after = store.fingerprint()
        assert (before[:8], before[16:]) == (after[:8], after[16:])
        assert before[8:16] != after[8:16]

    def test_either_picture_of_a_pair_counts(self, tmp_path: Path, make_pictures: MakePictures) -> None:
        files = [make_pictures(tmp_path / str(seed), 1, seed=seed) / "000.png" for seed in range(3)]
        pairs = [Pair(name="a", blurred=files[0], sharp=files[1]), Pair(name="a", blurred=files[0], sharp=files[2])]
        pairs.append(Pair(name="a", blurred=files[2], sharp=files[1]))
        assert len({PictureStore(PairPictures(pairs=[pair])).fingerprint() for pair in pairs}) == 3

    def test_a_file_that_is_gone_has_one_too(self, tmp_path: Path) -> None:
        assert len(PictureStore(sharp(tmp_path / "gone.png")).fingerprint()) == 8
