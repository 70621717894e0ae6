"""Training samples: crops that follow from seed and step, and folders that cannot be trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msan.blur import BlurSpec, blur_along
from msan.datasets import BlurredCrops, DatasetError, gradient_energy, load_pictures, picture_files

SHORT_BLUR = BlurSpec(length_px=(1.0, 4.0), instants=5)
NO_BLUR = BlurSpec(length_px=(0.0, 0.0), roll_px=0.0, noise_levels=0.0, sharp_share=0.0, instants=2)


def noise_picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)


def crops_of(*pictures: Tensor, blur: BlurSpec = SHORT_BLUR, tries: int = 3, seed: int = 7) -> BlurredCrops:
    return BlurredCrops(pictures=pictures, crop_px=16, batch=4, blur=blur, seed=seed, tries=tries)


def saved(path: Path, height: int, width: int, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    crops = crops_of(noise_picture(60, 50), noise_picture(48, 70, 1))
    blurred, sharp = crops.batch_at(5)
    torch.manual_seed(123)
    crops.batch_at(6)
    again = dataclasses.replace(crops).batch_at(5)
    assert torch.equal(again[0], blurred)
    assert torch.equal(again[1], sharp)


def test_other_steps_and_seeds_give_other_batches() -> None:
    crops = crops_of(noise_picture(60, 50))
    batches = [crops.batch_at(0)[1], crops.batch_at(1)[1], dataclasses.replace(crops, seed=8).batch_at(0)[1]]
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_batches_are_float_crops_in_range_on_the_8_bit_grid() -> None:
    for batch in crops_of(noise_picture(60, 70), blur=BlurSpec(noise_levels=20)).batch_at(0):
        assert batch.shape == (4, 3, 16, 16)
        assert batch.dtype == torch.float32
        assert 0 <= float(batch.min()) <= float(batch.max()) <= 1
        assert float((batch * 255 - (batch * 255).round()).abs().max()) < 1e-4


def test_without_blur_and_noise_both_are_the_same_crop_turned_alike() -> None:
    crops = crops_of(noise_picture(60, 50), blur=NO_BLUR)
    for step in range(8):
        blurred, sharp = crops.batch_at(step)
        assert torch.equal((blurred * 255).round(), (sharp * 255).round())


def test_blur_and_noise_change_the_blurred_picture_only() -> None:
    picture = noise_picture(60, 50)
    still = crops_of(picture, blur=NO_BLUR).batch_at(3)[1]
    noisy, sharp = crops_of(picture, blur=dataclasses.replace(NO_BLUR, noise_levels=9.0)).batch_at(3)
    assert torch.equal(sharp, still)
    assert not torch.equal(noisy, sharp)


def test_crops_come_whole_from_inside_a_picture_in_all_eight_orientations() -> None:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    coordinates = torch.stack((rows, columns, torch.zeros_like(rows))).to(torch.uint8)
    crops = crops_of(coordinates)
    margin = crops.margin_px
    orientations: set[tuple[int, int, int, int]] = set()
    for step in range(16):
        for crop in (crops.batch_at(step)[1] * 255).round().int():
            down, right = crop[:2, 1, 0] - crop[:2, 0, 0], crop[:2, 0, 1] - crop[:2, 0, 0]
            orientations.add((int(down[0]), int(down[1]), int(right[0]), int(right[1])))
            assert margin <= int(crop[0].min()) == int(crop[0].max()) - 15 < 64 - margin - 15
            assert margin <= int(crop[1].min()) == int(crop[1].max()) - 15 < 80 - margin - 15
    assert orientations == {(a, 0, 0, b) for a in (-1, 1) for b in (-1, 1)} | {
        (0, a, b, 0) for a in (-1, 1) for b in (-1, 1)
    }


def test_a_crop_is_blurred_at_its_offset_from_the_pictures_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(srgb: Tensor, trajectories: Tensor, *, margin_px: int, offset_px: Tensor) -> Tensor:
        seen.append(((srgb * 255).round(), offset_px))
        return blur_along(srgb, trajectories, margin_px=margin_px, offset_px=offset_px)

    monkeypatch.setattr("msan.datasets.blur_along", spy)
    height, width = 64, 81
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    crops_of(torch.stack((rows, columns, rows)).to(torch.uint8)).batch_at(0)
    for pixels, offset in zip(*seen[0], strict=True):
        # The mean coordinate of a crop is its centre; the picture's is half a pixel before half its side.
        assert pixels[0].mean() - (height - 1) / 2 == pytest.approx(float(offset[0]), abs=1e-3)
        assert pixels[1].mean() - (width - 1) / 2 == pytest.approx(float(offset[1]), abs=1e-3)


def test_crops_of_texture_are_preferred_to_flat_ones() -> None:
    half = noise_picture(60, 200)
    half[:, :, :140] = 128

    def textured_share(tries: int) -> float:
        crops = crops_of(half, tries=tries)
        taken = [crop for step in range(12) for crop in crops.batch_at(step)[1]]
        return sum(float(crop.std()) > 0.05 for crop in taken) / len(taken)

    assert textured_share(1) < 0.5
    assert textured_share(6) > 0.8


def test_gradient_energy_is_the_mean_step_between_neighbours() -> None:
    ramp = torch.zeros((3, 4, 6), dtype=torch.uint8)
    assert gradient_energy(ramp) == 0
    ramp[1] = torch.arange(5, -1, -1) * 50
    assert gradient_energy(ramp) == 50


def test_the_margin_holds_the_longest_straight_path() -> None:
    for longest in (1.0, 4.0, 18.0, 60.0):
        blur = BlurSpec(length_px=(1.0, longest), roll_px=0.0)
        assert crops_of(noise_picture(8, 8), blur=blur).margin_px > longest / 2


def test_a_picture_that_fits_exactly_is_used() -> None:
    smallest = 16 + 2 * crops_of().margin_px
    blurred, sharp = crops_of(noise_picture(smallest, smallest)).batch_at(0)
    assert blurred.shape == sharp.shape == (4, 3, 16, 16)


def test_pictures_are_found_in_all_folders_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpeg", "a/b/y.webp", "c.tif", "a.jpg"]
    for name in [*names, "notes.txt", "a/.hidden", "folder.png/inside.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert picture_files(tmp_path) == sorted(tmp_path / name for name in names)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no folder of pictures at .*nowhere"):
        picture_files(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no folder of pictures"):
        picture_files(saved(tmp_path / "a.png", 8, 8))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError, match="no JPEG, PNG, WebP or TIFF picture under "):
        picture_files(tmp_path)


@pytest.mark.parametrize("damage", ["text", "empty", "half"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_picture_that_cannot_be_decoded_is_named(damage: str, suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"broken.{suffix}", 40, 40)
    data = path.read_bytes()
    path.write_bytes({"text": b"no picture", "empty": b"", "half": data[: len(data) // 2]}[damage])
    with pytest.raises(DatasetError, match=rf"broken\.{suffix}.*Remove it"):
        load_pictures([path], long_side_px=64, short_side_px=8)


def test_a_png_with_a_broken_chunk_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "broken.png", 40, 40)
    # Pillow raises SyntaxError for a chunk whose name is none.
    path.write_bytes(path.read_bytes()[:33] + b"\x00\x00\x00\x01\x02\xd8\xde\xde" + bytes(9))
    with pytest.raises(DatasetError, match=r"broken\.png .*Remove it"):
        load_pictures([path], long_side_px=64, short_side_px=8)


def test_pictures_that_are_too_small_are_left_out(tmp_path: Path) -> None:
    files = [saved(tmp_path / "small.png", 40, 20), saved(tmp_path / "large.png", 24, 40)]
    assert [p.shape for p in load_pictures(files, long_side_px=64, short_side_px=24)] == [(3, 24, 40)]


def test_only_small_pictures_are_refused_with_the_size_needed(tmp_path: Path) -> None:
    files = [saved(tmp_path / "a.png", 40, 20), saved(tmp_path / "b.png", 8, 8)]
    with pytest.raises(DatasetError, match="none of 2 pictures has a side of 24 px"):
        load_pictures(files, long_side_px=64, short_side_px=24)


def test_large_pictures_are_shrunk_and_keep_their_shape(tmp_path: Path) -> None:
    files = [saved(tmp_path / "wide.png", 50, 100), saved(tmp_path / "fits.png", 40, 30)]
    shapes = [p.shape for p in load_pictures(files, long_side_px=60, short_side_px=8)]
    assert shapes == [(3, 30, 60), (3, 40, 30)]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_pictures_of_every_kind_become_rgb(mode: str, tmp_path: Path) -> None:
    (picture,) = load_pictures([saved(tmp_path / "a.png", 10, 12, mode)], long_side_px=64, short_side_px=8)
    assert picture.shape == (3, 10, 12)
    assert picture.dtype == torch.uint8
