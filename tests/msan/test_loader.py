"""The data loader: what is found and held back, and batches that no worker and no cache changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from msan.data.datasets import Batch, Sample
from msan.data.loader import DataOptions, TrainingData, batches, open_data
from msan.data.readers import DatasetError
from msan.training.recipe import TrainConfig

CPU = torch.device("cpu")
MakePictures = Callable[..., Path]


class Heard(list[str]):
    """Announcements."""

    def options(self, **changes: object) -> DataOptions:
        return dataclasses.replace(DataOptions(announce=self.append), **changes)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def batches_of(
    data: TrainingData, steps: int, *, workers: int = 0, rank: int = 0, processes: int = 1
) -> Iterator[Batch]:
    return batches(data.samples, range(steps), rank=rank, processes=processes, device=CPU, workers=workers)


def samples_of(batch: Batch) -> list[Sample]:
    return sorted((*batch.paired, *batch.synthetic), key=lambda sample: sample.index)


def assert_same(one: Batch, other: Batch) -> None:
    for ours, theirs in zip(samples_of(one), samples_of(other), strict=True):
        values = [(s.index, s.name, s.offset_px, s.turns, s.flip, s.bad, s.blurred is None) for s in (ours, theirs)]
        assert values[0] == values[1]
        tensors = [[t for t in (s.sharp, s.blurred) if t is not None] for s in (ours, theirs)]
        assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


class TestOpening:
    def test_what_was_found_is_announced_and_counted(
        self, miniature: TrainConfig, sharp_folder: Path, pair_folder: Path, heard: Heard
    ) -> None:
        data = open_data([sharp_folder, pair_folder], miniature, heard.options())
        assert data.samples.pictures == 5
        assert heard == [
            f"{sharp_folder}: 3 sharp pictures, to be blurred",
            f"{pair_folder}: {pair_folder.name}, 2 pairs of blurred and sharp pictures",
        ]

    def test_of_published_layouts_the_training_split_is_taken(
        self, miniature: TrainConfig, make_pictures: MakePictures, tmp_path: Path, heard: Heard
    ) -> None:
        for split, count in (("train", 3), ("test", 2)):
            for seed, kind in enumerate(("blur", "blur_gamma", "sharp")):
                make_pictures(tmp_path / split / "scene" / kind, count, seed=seed)
        for layout, kind in ((None, "blur"), ("gopro-gamma", "blur_gamma")):
            data = open_data([tmp_path], dataclasses.replace(miniature, layout=layout), heard.options())
            assert data.samples.pictures == 3
            names = {sample.name for batch in batches_of(data, 3) for sample in samples_of(batch)}
            assert names == {str(tmp_path / "train" / "scene" / kind / f"00{i}.png") for i in range(3)}

    @pytest.mark.parametrize("every", [0, 2, 3])
    def test_every_nth_picture_is_held_back_and_not_trained_on(
        self, every: int, miniature: TrainConfig, make_pictures: MakePictures, pair_folder: Path, tmp_path: Path
    ) -> None:
        folder = make_pictures(tmp_path, 7)
        config = dataclasses.replace(miniature, held_back=every)
        data = open_data([folder, pair_folder], config, Heard().options())
        held = {str(file) for file in data.held_sharp} | {str(pair.blurred) for pair in data.held_pairs}
        expected = [f"{i:03d}.png" for i in range(7) if every and i % every == 0]
        assert [file.name for file in data.held_sharp] == expected
        assert len(data.held_pairs) == (1 if every else 0)
        trained = {sample.name for batch in batches_of(data, 6) for sample in samples_of(batch)}
        assert trained.isdisjoint(held)
        assert len(trained | held) == 9

    def test_a_single_picture_is_not_held_back(
        self, miniature: TrainConfig, make_pictures: MakePictures, tmp_path: Path
    ) -> None:
        config = dataclasses.replace(miniature, held_back=2)
        data = open_data([make_pictures(tmp_path, 1)], config, Heard().options())
        assert (data.samples.pictures, list(data.held_sharp)) == (1, [])

    def test_small_pictures_are_left_out_and_counted(
        self, miniature: TrainConfig, make_pictures: MakePictures, tmp_path: Path, heard: Heard
    ) -> None:
        folder = make_pictures(tmp_path / "a", 2, height=40)
        make_pictures(tmp_path / "a" / "b", 3, height=39)
        data = open_data([folder], miniature, heard.options())
        assert data.samples.pictures == 2
        assert heard[1] == "3 of 5 pictures left out: a side is under 40 px"

    def test_only_small_pictures_are_refused_with_the_size_needed(
        self, miniature: TrainConfig, make_pictures: MakePictures, make_pairs: MakePictures, tmp_path: Path
    ) -> None:
        folder = make_pictures(tmp_path / "a", 2, height=39)
        with pytest.raises(DatasetError, match=r"none of 2 pictures has sides of 40 px or more. The first: .*000\.png"):
            open_data([folder], miniature, Heard().options())
        pairs = make_pairs(tmp_path / "b", 2, height=31)
        with pytest.raises(DatasetError, match=r"none of 2 pictures has sides of 32 px or more"):
            open_data([pairs], miniature, Heard().options())

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("missing", "no folder of pictures at .*data"),
            ("file", "no folder of pictures at .*data"),
            ("empty", "no JPEG, PNG, WebP or TIFF picture under .*data"),
            ("lonely", r"1 of 2 blurred pictures under .*data have no sharp partner, first: .*input/001\.png"),
        ],
    )
    def test_data_that_cannot_be_trained_on_are_refused(
        self, kind: str, words: str, miniature: TrainConfig, make_pairs: MakePictures, tmp_path: Path
    ) -> None:
        folder = tmp_path / "data"
        if kind == "file":
            folder.touch()
        if kind == "empty":
            folder.mkdir()
            (folder / "notes.txt").touch()
        if kind == "lonely":
            make_pairs(folder, 2)
            (folder / "target" / "001.png").unlink()
        with pytest.raises(DatasetError, match=words):
            open_data([folder], miniature, Heard().options())

    def test_pictures_that_leave_no_room_are_read_from_disk_and_that_is_said(
        self, miniature: TrainConfig, sharp_folder: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("msan.data.loader.fits_in_memory", lambda size: size < 1000)
        open_data([sharp_folder], miniature, heard.options(cache="auto"))
        assert heard[1:] == ["3 pictures take 0.0 GB decoded: read from disk for each sample instead"]


class TestBatches:
    # A machine of one core: two worker processes are what is tested here.
    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    def test_neither_workers_nor_the_cache_change_a_batch(
        self, miniature: TrainConfig, sharp_folder: Path, pair_folder: Path
    ) -> None:
        def taken(cache: str, workers: int) -> list[Batch]:
            options = Heard().options(cache=cache)
            return list(batches_of(open_data([sharp_folder, pair_folder], miniature, options), 6, workers=workers))

        expected = taken("memory", 0)
        assert len(expected) == 6
        for cache, workers in (("off", 0), ("memory", 2), ("off", 2)):
            for ours, theirs in zip(taken(cache, workers), expected, strict=True):
                assert_same(ours, theirs)

    def test_processes_share_a_step_as_one_would_take_it_alone(
        self, miniature: TrainConfig, sharp_folder: Path, pair_folder: Path
    ) -> None:
        def taken(batch: int, rank: int, processes: int) -> list[list[Sample]]:
            config = dataclasses.replace(miniature, batch=batch)
            data = open_data([sharp_folder, pair_folder], config, Heard().options())
            return [samples_of(batch) for batch in batches_of(data, 5, rank=rank, processes=processes)]

        alone, first, second = taken(6, 0, 1), taken(3, 0, 2), taken(3, 1, 2)
        for step in range(5):
            shared = [*first[step], *second[step]]
            assert [s.index for s in shared] == [s.index for s in alone[step]] == list(range(6 * step, 6 * step + 6))
            assert all(torch.equal(a.sharp, b.sharp) for a, b in zip(shared, alone[step], strict=True))

    def test_a_resumed_run_goes_on_with_the_batches_that_it_missed(
        self, miniature: TrainConfig, sharp_folder: Path
    ) -> None:
        data = open_data([sharp_folder], miniature, Heard().options())
        whole = list(batches_of(data, 7))
        rest = batches(data.samples, range(4, 7), rank=0, processes=1, device=CPU, workers=0)
        for ours, theirs in zip(rest, whole[4:], strict=True):
            assert_same(ours, theirs)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_only_damaged_pictures_are_one_plain_error_wherever_they_are_met(
        self, workers: int, miniature: TrainConfig, tmp_path: Path
    ) -> None:
        for index in range(3):
            (tmp_path / f"{index}.png").write_bytes(b"no picture")
        data = open_data([tmp_path], miniature, Heard().options(cache="off"))
        with pytest.raises(DatasetError, match="none of 3 pictures can be decoded") as raised:
            next(batches_of(data, 2, workers=workers))
        assert "\n" not in str(raised.value)

    def test_a_damaged_picture_is_told_with_the_batch_that_met_it(
        self, miniature: TrainConfig, make_pictures: MakePictures, tmp_path: Path
    ) -> None:
        folder = make_pictures(tmp_path, 4)
        (folder / "002.png").write_bytes(b"no picture")
        for cache in ("memory", "off"):
            data = open_data([folder], miniature, Heard().options(cache=cache))
            met = [batch.bad for batch in batches_of(data, 2)]
            assert [list(bad) for bad in met if bad] == [[str(folder / "002.png")]]


def test_a_layout_that_no_folder_has_is_refused(miniature: TrainConfig, sharp_folder: Path) -> None:
    config = dataclasses.replace(miniature, layout="gopro")
    with pytest.raises(DatasetError, match="is laid out as gopro"):
        open_data([sharp_folder], config, DataOptions(announce=lambda _: None))
