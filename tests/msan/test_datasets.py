"""Training samples: functions of seed and index, each picture once an epoch, both of a pair turned alike."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from msan.data.datasets import Sample, SampleSet, collate, gradient_energy, tensors_from_batch
from msan.data.pictures import PictureStore
from msan.degradation.blur import BlurSpec
from msan.degradation.degrade import degrade, margin_px
from msan.training.recipe import TrainConfig

CPU = torch.device("cpu")
NO_BLUR = BlurSpec(
    length_px=(0.0, 0.0), roll_px=0.0, zoom_px=0.0, noise_levels=0.0, moving_share=0.0, jpeg_share=0.0, instants=2
)


class Pictures:
    """A source in memory."""

    def __init__(self, *pictures: tuple[Tensor, ...]) -> None:
        self.pictures = pictures
        self.names = [f"picture {index}" for index in range(len(pictures))]

    def paths(self, index: int) -> tuple[Path, ...]:
        return (Path(self.names[index]),)

    def load(self, index: int) -> tuple[Tensor, ...]:
        return self.pictures[index]

    def size_px(self, index: int) -> tuple[int, int]:
        height, width = self.pictures[index][0].shape[1:]
        return height, width


def store(*pictures: tuple[Tensor, ...]) -> PictureStore:
    return PictureStore(Pictures(*pictures))


def grey(count: int, height: int = 24, width: int = 24, *, of: int = 1) -> PictureStore:
    """Pictures of one colour each, their index; ``of`` 2 for pairs."""
    return store(*((torch.full((3, height, width), index, dtype=torch.uint8),) * of for index in range(count)))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def coordinates(height: int, width: int) -> Tensor:
    """Each pixel tells its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((rows, columns, rows ^ columns)).to(torch.uint8)


@pytest.fixture
def config(miniature: TrainConfig) -> TrainConfig:
    return dataclasses.replace(miniature, crop_px=16, blur=NO_BLUR, batch=4)


def tensors(samples: list[Sample], config: TrainConfig) -> tuple[Tensor, Tensor]:
    """The blurred and the sharp pictures of samples, in whole grey levels."""
    blurred, sharp = tensors_from_batch(collate(samples), config, CPU)
    for made in (blurred, sharp):
        assert made.dtype == torch.float32
        assert made.shape == (len(samples), 3, config.crop_px, config.crop_px)
        assert 0 <= float(made.min()) <= float(made.max()) <= 1
        assert float((made * 255 - (made * 255).round()).abs().max()) < 1e-4
    return (blurred * 255).round().int(), (sharp * 255).round().int()


def same(one: Sample, other: Sample) -> bool:
    values = [[s.index, s.name, s.offset_px, s.turns, s.flip, s.bad, s.blurred is None] for s in (one, other)]
    tensors = [[t for t in (s.sharp, s.blurred) if t is not None] for s in (one, other)]
    return values[0] == values[1] and all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


class TestSamples:
    def test_a_sample_follows_from_seed_and_index_alone(self, config: TrainConfig) -> None:
        pairs, sharp = store((noise(30, 40), noise(30, 40, 1))), store((noise(60, 50, 2),), (noise(48, 70, 3),))
        config = dataclasses.replace(config, candidates=2, flat_share=0.2)
        samples = SampleSet(config, sharp=sharp, pairs=pairs)
        first = [samples[index] for index in range(12)]
        torch.manual_seed(123)
        again = SampleSet(config, sharp=sharp, pairs=pairs)
        assert all(same(first[index], again[index]) for index in reversed(range(12)))
        other = SampleSet(dataclasses.replace(config, seed=8), sharp=sharp, pairs=pairs)
        assert not any(same(first[index], other[index]) for index in range(12))

    def test_a_picture_gives_another_crop_each_epoch(self, config: TrainConfig) -> None:
        samples = SampleSet(config, sharp=store((coordinates(200, 200),)), pairs=None)
        corners = {tuple(samples[epoch].sharp[:2, 0, 0].tolist()) for epoch in range(20)}
        assert len(corners) == 20

    def test_crops_come_from_everywhere_inside_and_in_all_eight_orientations(self, config: TrainConfig) -> None:
        margin = margin_px(config.blur)
        height, width = 16 + 2 * margin + 3, 16 + 2 * margin + 5
        samples = SampleSet(config, sharp=store((coordinates(height, width),)), pairs=None)
        _, sharp = tensors([samples[index] for index in range(160)], config)
        orientations: set[tuple[int, ...]] = set()
        corners: set[tuple[int, int]] = set()
        for crop in sharp:
            down, right = crop[:2, 1, 0] - crop[:2, 0, 0], crop[:2, 0, 1] - crop[:2, 0, 0]
            orientations.add((*down.tolist(), *right.tolist()))
            corners.add((int(crop[0].min()) - margin, int(crop[1].min()) - margin))
            assert crop[0].max() - crop[0].min() == crop[1].max() - crop[1].min() == 15
        straight = {(a, 0, 0, b) for a in (-1, 1) for b in (-1, 1)}
        assert orientations == straight | {(0, a, b, 0) for a in (-1, 1) for b in (-1, 1)}
        assert corners == {(top, left) for top in range(4) for left in range(6)}

    def test_both_of_a_pair_are_cut_flipped_and_turned_alike(self, config: TrainConfig) -> None:
        picture = coordinates(40, 50)
        samples = SampleSet(config, sharp=None, pairs=store((picture + 7, picture)))
        blurred, sharp = tensors([samples[index] for index in range(40)], config)
        assert torch.equal(blurred, sharp + 7)
        assert len({tuple(crop.flatten().tolist()) for crop in sharp}) > 30

    def test_a_pair_that_fits_exactly_is_used_whole(self, config: TrainConfig) -> None:
        picture = noise(16, 16)
        samples = SampleSet(config, sharp=None, pairs=store((255 - picture, picture)))
        _, sharp = tensors([samples[index] for index in range(8)], config)
        for crop in sharp:
            assert sorted(crop.flatten().tolist()) == sorted(picture.flatten().tolist())

    def test_a_crop_tells_its_offset_from_the_pictures_centre(self, config: TrainConfig) -> None:
        samples = SampleSet(config, sharp=store((coordinates(64, 81),)), pairs=None)
        for index in range(8):
            sample = samples[index]
            # The mean coordinate of a crop is its centre; the picture's is half a pixel before half its side.
            centre = (float(sample.sharp[0].float().mean()) - 31.5, float(sample.sharp[1].float().mean()) - 40.0)
            assert sample.offset_px == pytest.approx(centre, abs=1e-3)

    def test_crops_of_texture_are_preferred_to_flat_ones(self, config: TrainConfig) -> None:
        half = noise(60, 200)
        half[:, :, :140] = 128

        def textured(candidates: int) -> float:
            ours = dataclasses.replace(config, candidates=candidates)
            samples = SampleSet(ours, sharp=store((half,)), pairs=None)
            return float(np.mean([gradient_energy(samples[index].sharp) > 10 for index in range(48)]))

        assert textured(1) < 0.6
        assert textured(6) > 0.8

    def test_gradient_energy_is_the_mean_step_between_neighbours(self) -> None:
        ramp = torch.zeros((3, 4, 6), dtype=torch.uint8)
        assert gradient_energy(ramp) == 0
        ramp[1] = torch.arange(5, -1, -1) * 50
        assert gradient_energy(ramp) == 50


class TestBatches:
    def test_without_blur_and_noise_both_are_the_same_crop(self, config: TrainConfig) -> None:
        samples = SampleSet(config, sharp=store((noise(60, 50),)), pairs=None)
        blurred, sharp = tensors([samples[index] for index in range(16)], config)
        assert torch.equal(blurred, sharp)

    def test_blur_and_noise_change_the_blurred_picture_only(self, config: TrainConfig) -> None:
        noisy = dataclasses.replace(config, blur=dataclasses.replace(NO_BLUR, noise_levels=9.0))
        samples = SampleSet(config, sharp=store((noise(60, 50),)), pairs=None)
        batch = [samples[index] for index in range(4)]
        still, sharp = tensors(batch, config)
        blurred, unchanged = tensors(batch, noisy)
        assert torch.equal(sharp, unchanged)
        assert 0 < float((blurred - still).float().std()) < 9

    def test_a_synthetic_sample_is_the_blur_of_its_own_crop(self, miniature: TrainConfig) -> None:
        config = dataclasses.replace(miniature, crop_px=16)
        samples = SampleSet(config, sharp=store((noise(90, 80),)), pairs=None)
        margin = margin_px(config.blur)
        batch = [samples[index] for index in range(4)]
        blurred, sharp = tensors(batch, config)
        assert not torch.equal(blurred, sharp)
        seeds = {index: [config.seed * 1_000_003 + index] for index in range(4)}
        for index, sample in enumerate(batch):
            crop, offset = sample.sharp[None], torch.tensor([sample.offset_px])
            made = degrade(crop, seeds[index], config.blur, margin_px=margin, offset_px=offset)[0]
            turned = torch.rot90((made * 255).round().int(), sample.turns, (1, 2))
            assert torch.equal(blurred[index], turned.flip(2) if sample.flip else turned)

    @settings(max_examples=20, deadline=None)
    @given(st.permutations(range(6)), st.integers(1, 5))
    def test_a_sample_is_the_same_in_any_batch(self, order: list[int], size: int) -> None:
        config = TrainConfig(crop_px=16, blur=BlurSpec(length_px=(1.0, 4.0), instants=4), flat_share=0.2)
        pairs = store((noise(30, 30, 5), noise(30, 30, 6)))
        samples = SampleSet(config, sharp=store((noise(70, 70),)), pairs=pairs)

        def by_index(indices: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
            batch = collate([samples[index] for index in indices])
            made = zip(*tensors_from_batch(batch, config, CPU), strict=True)
            return {s.index: both for s, both in zip((*batch.paired, *batch.synthetic), made, strict=True)}

        whole, part = by_index(list(range(6))), by_index(order[:size])
        for index, both in part.items():
            assert torch.equal(both[0], whole[index][0])
            assert torch.equal(both[1], whole[index][1])

    def test_a_batch_names_its_pictures_and_the_bad_ones(self, config: TrainConfig) -> None:
        samples = SampleSet(config, sharp=grey(2, 40, 40), pairs=grey(2, of=2))
        batch = [samples[index] for index in range(4)]
        batch[1] = dataclasses.replace(batch[1], bad={"a.png": "a.png is damaged"})
        assert sorted(collate(batch).names) == ["picture 0", "picture 0", "picture 1", "picture 1"]
        assert collate(batch).bad == {"a.png": "a.png is damaged"}


class TestEpochs:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
    @example(48, 1, 0)  # 49 × (1 / 49) is under 1 in floating point
    def test_each_picture_comes_once_an_epoch(self, sharp: int, pairs: int, epoch: int) -> None:
        if sharp + pairs == 0:
            return
        config = TrainConfig(crop_px=16, blur=NO_BLUR)
        samples = SampleSet(
            config,
            sharp=grey(sharp) if sharp else None,
            pairs=grey(pairs, of=2) if pairs else None,
        )
        count = sharp + pairs
        assert samples.pictures == count
        seen = Counter(
            (sample.blurred is None, sample.name)
            for sample in (samples[index] for index in range(epoch * count, (epoch + 1) * count))
        )
        kinds = {(True, f"picture {i}"): 1 for i in range(sharp)} | {(False, f"picture {i}"): 1 for i in range(pairs)}
        assert seen == kinds

    def test_epochs_have_orders_of_their_own(self, config: TrainConfig) -> None:
        samples = SampleSet(config, sharp=grey(12), pairs=None)
        orders = {tuple(samples[12 * epoch + place].name for place in range(12)) for epoch in range(5)}
        assert len(orders) == 5

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.375, 1.0])
    def test_pairs_have_their_share_and_each_kind_goes_through_its_pictures(
        self, share: float, config: TrainConfig
    ) -> None:
        config = dataclasses.replace(config, pair_share=share)
        samples = SampleSet(config, sharp=grey(4), pairs=grey(3, of=2))
        taken = [samples[index] for index in range(240)]
        paired = [sample.blurred is not None for sample in taken]
        assert sum(paired) == 240 * share
        for first in range(0, 240, 40):
            assert sum(paired[first : first + 40]) == pytest.approx(40 * share, abs=1)
        for kind in (False, True):
            counts = Counter(s.name for s, p in zip(taken, paired, strict=True) if p is kind)
            assert not counts or max(counts.values()) - min(counts.values()) <= 1

    def test_flat_samples_have_one_colour_their_share_and_greys_among_them(self, config: TrainConfig) -> None:
        config = dataclasses.replace(config, flat_share=0.25, blur=BlurSpec(length_px=(1.0, 4.0), instants=4))
        samples = SampleSet(config, sharp=store((noise(60, 60),)), pairs=None)
        taken = [samples[index] for index in range(400)]
        flat = [sample for sample in taken if sample.name == "flat colour"]
        assert 70 <= len(flat) <= 130
        blurred, sharp = tensors(flat, config)
        assert torch.equal(blurred, sharp)
        assert all(torch.equal(crop, crop[:, :1, :1].expand_as(crop)) for crop in sharp)
        greys = sum(len(set(crop[:, 0, 0].tolist())) == 1 for crop in sharp)
        assert 0.3 < greys / len(flat) < 0.7
        none = SampleSet(dataclasses.replace(config, flat_share=0.0), sharp=samples.sharp, pairs=None)
        assert not any(none[index].name == "flat colour" for index in range(100))
        # Whether others are flat changes nothing in those that are not.
        for sample in taken[:20]:
            assert sample.name == "flat colour" or torch.equal(sample.sharp, none[sample.index].sharp)
