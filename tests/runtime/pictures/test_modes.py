"""Every mode of every format: read as Pillow shows it, written with its channels into every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from msan_runtime.contract import PictureArray
from msan_runtime.errors import PictureError
from msan_runtime.image import SUFFIXES, read_picture, write_picture

Sample = Callable[[str], Image.Image]
Noise = Callable[..., PictureArray]

LOSSLESS: dict[str, dict[str, Any]] = {".webp": {"lossless": True, "exact": True}}
MODES = {
    ".jpg": ("L", "RGB", "CMYK", "YCbCr"),
    ".png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    ".tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
    ".webp": ("RGB", "RGBA"),
}
EVERY_MODE = [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]


def test_the_suffixes_are_those_of_the_four_formats() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"} == SUFFIXES


@pytest.mark.parametrize(("suffix", "mode"), EVERY_MODE)
def test_every_mode_is_read_as_pillow_shows_it(suffix: str, mode: str, sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    sample(mode).save(path, **LOSSLESS.get(suffix, {}))
    read = read_picture(path)
    with Image.open(path) as image:
        expected, alpha = np.array(image.convert("RGB")), np.array(image.convert("RGBA"))[:, :, 3]
    assert read.pixels.shape == (24, 40, 3)
    assert np.array_equal(read.pixels, expected)
    assert read.grey == (mode in ("1", "L", "LA"))
    assert (read.alpha is not None) == (mode in ("LA", "RGBA"))
    assert read.alpha is None or np.array_equal(read.alpha, alpha)


@pytest.mark.parametrize(("suffix", "mode"), EVERY_MODE)
@pytest.mark.parametrize("target", [".png", ".tif", ".webp", ".jpg"])
def test_every_mode_is_written_with_its_channels(
    suffix: str, mode: str, target: str, sample: Sample, tmp_path: Path
) -> None:
    source, result = tmp_path / f"picture{suffix}", tmp_path / f"result{target}"
    sample(mode).save(source, **LOSSLESS.get(suffix, {}))
    read = read_picture(source)
    if mode in ("LA", "RGBA") and target == ".jpg":
        with pytest.raises(PictureError, match=r"result\.jpg: JPEG has no transparency"):
            write_picture(result, read)
        return
    write_picture(result, read)
    channels = ("L" if mode in ("1", "L", "LA") else "RGB") + ("A" if mode in ("LA", "RGBA") else "")
    with Image.open(result) as image:
        # WebP stores colour always.
        assert image.mode == (channels.replace("L", "RGB") if target == ".webp" else channels)
        if target in (".png", ".tif") or (target == ".webp" and suffix != ".jpg"):
            assert np.array_equal(np.array(image.convert("RGB")), read.pixels)
            assert read.alpha is None or np.array_equal(np.array(image.getchannel("A")), read.alpha)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_every_lossless_compression_of_a_tiff_is_read(
    compression: str, mode: str, sample: Sample, tmp_path: Path
) -> None:
    sample(mode).save(tmp_path / "a.tif", compression=compression)
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, np.array(sample(mode).convert("RGB")))


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_every_layout_of_a_tiff_is_read(
    planes: str, order: Any, tile: tuple[int, int] | None, noise: Noise, tmp_path: Path
) -> None:
    pixels = noise(40, 50, 3)
    stored = pixels if planes == "contig" else np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planes, byteorder=order, tile=tile)
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("big", [False, True])
def test_a_big_tiff_is_read(big: bool, noise: Noise, tmp_path: Path) -> None:
    pixels = noise(40, 50, 3)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", bigtiff=big, resolution=(200, 100))
    read = read_picture(tmp_path / "a.tif")
    assert np.array_equal(read.pixels, pixels)
    assert read.dpi == (100, 200)


@pytest.mark.parametrize(("target", "channels"), [(".png", 1), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3)])
def test_results_are_what_opencv_reads(target: str, channels: int, noise: Noise, tmp_path: Path) -> None:
    pixels = noise(30, 20, channels).squeeze()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_picture(tmp_path / f"b{target}", read_picture(tmp_path / "a.png"))
    read = cv2.imread(str(tmp_path / f"b{target}"), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert np.array_equal(read if channels == 1 else read[:, :, [2, 1, 0, 3][:channels]], pixels)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_grey_png_of_few_bits_becomes_one_of_eight(depth: int, png: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8 // depth, 1, depth, 0, b"\0\xe4"))
    levels = [(0xE4 >> shift) % 2**depth * 255 // (2**depth - 1) for shift in range(8 - depth, -1, -depth)]
    read = read_picture(tmp_path / "a.png")
    assert read.grey
    assert read.pixels[0, :, 0].tolist() == levels
    write_picture(tmp_path / "b.png", read)
    assert (tmp_path / "b.png").read_bytes()[24:26] == bytes([8, 0])  # bit depth, colour type


def test_transparency_of_a_palette_picture_becomes_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "palette.png", transparency=0)
    read = read_picture(tmp_path / "palette.png")
    assert read.alpha is not None
    assert read.alpha.tolist() == [[0, 255, 255, 255], [255, 255, 255, 255]]
    assert read.pixels[0, 1].tolist() == [40, 50, 60]
    assert read.hidden is not None
    assert read.hidden.tolist() == [[10, 20, 30]]


def test_a_transparent_grey_level_becomes_alpha_and_the_picture_stays_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 8]], np.uint8)).save(tmp_path / "grey.png", transparency=7)
    read = read_picture(tmp_path / "grey.png")
    assert read.grey
    assert read.alpha is not None
    assert read.alpha.tolist() == [[0, 255]]


def test_the_content_tells_the_format_and_not_the_name(noise: Noise, tmp_path: Path) -> None:
    pixels = noise(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(read_picture(tmp_path / "a.jpg").pixels, pixels)


@pytest.mark.parametrize("suffix", [".PNG", ".Tiff"])
def test_a_suffix_in_capitals_is_as_good(suffix: str, noise: Noise, tmp_path: Path) -> None:
    pixels = noise(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_picture(tmp_path / f"a{suffix}", read_picture(tmp_path / "a.png"))
    assert np.array_equal(read_picture(tmp_path / f"a{suffix}").pixels, pixels)


def test_a_phones_jpeg_with_a_preview_is_read_as_its_main_picture(
    sample: Sample, camera_exif: Callable[[int], bytes], tmp_path: Path
) -> None:
    main, preview = sample("RGB"), Image.new("RGB", (8, 8))
    main.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[preview], exif=camera_exif(6))
    main.save(tmp_path / "plain.jpg", exif=camera_exif(6))
    with Image.open(tmp_path / "phone.jpg") as image:
        assert image.format == "MPO"
    assert np.array_equal(read_picture(tmp_path / "phone.jpg").pixels, read_picture(tmp_path / "plain.jpg").pixels)


def test_a_tiff_of_8_bits_is_never_taken_for_16(noise: Noise, tmp_path: Path) -> None:
    # Noise does not compress, so that tables of these sizes lie at byte 1,400 to 1,800 of their files.
    for width in range(58, 76):
        pixels = noise(8, width, 3)
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_deflate")
        assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)
