"""Pictures of 16 bits a channel, against OpenCV, tifffile and files made by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import ExifTags, Image

from msan_runtime.compare import side_by_side
from msan_runtime.errors import PictureError
from msan_runtime.image import Picture, read_picture, write_picture

Maker = Callable[[int], bytes]


def ramp(channels: int) -> npt.NDArray[np.uint16]:
    """16-bit noise, uint16 24×40×C."""
    return np.random.default_rng(channels).integers(0, 65536, (24, 40, channels), np.uint16)


def save(path: Path, samples: npt.NDArray[np.uint16]) -> None:
    """A file by OpenCV (PNG) or tifffile; alpha, if any, comes last."""
    channels = samples.shape[2]
    if path.suffix == ".png":
        cv2.imwrite(str(path), samples[:, :, [2, 1, 0, 3][:channels]] if channels > 2 else samples.squeeze())
        return
    kind: Any = {1: "minisblack", 2: "minisblack", 3: "rgb", 4: "rgb"}[channels]
    extra: dict[str, Any] = {"extrasamples": ["unassalpha"], "planarconfig": "contig"} if channels in (2, 4) else {}
    tifffile.imwrite(path, samples.squeeze(), photometric=kind, compression="lzw", **extra)


def load(path: Path) -> npt.NDArray[Any]:
    """The samples of a file as OpenCV (PNG) or tifffile reads them, H×W×C."""
    if path.suffix != ".png":
        return np.atleast_3d(tifffile.imread(path))
    samples = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert samples is not None
    samples = np.atleast_3d(samples)
    return samples[:, :, [2, 1, 0, 3][: samples.shape[2]]] if samples.shape[2] > 2 else samples


@pytest.mark.parametrize("source", [".png", ".tif"])
@pytest.mark.parametrize("target", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_come_in_and_go_out(source: str, target: str, channels: int, tmp_path: Path) -> None:
    samples = ramp(channels)
    save(tmp_path / f"a{source}", samples)
    read = read_picture(tmp_path / f"a{source}", deep=True)
    assert read.pixels.dtype == np.uint16
    assert np.array_equal(read.pixels, np.broadcast_to(samples[:, :, :3], (24, 40, 3)))
    assert read.grey == (channels == 1)
    write_picture(tmp_path / f"b{target}", read)
    assert load(tmp_path / f"b{target}").dtype == np.uint16
    assert np.array_equal(load(tmp_path / f"b{target}"), samples)


def test_grey_with_alpha(tmp_path: Path) -> None:
    samples = ramp(2)
    save(tmp_path / "a.tif", samples)
    for target in ("b.png", "b.tif"):
        write_picture(tmp_path / target, read_picture(tmp_path / "a.tif", deep=True))
        read = read_picture(tmp_path / target, deep=True)
        assert read.grey
        assert read.alpha is not None
        assert np.array_equal(read.pixels[:, :, 1], samples[:, :, 0])
        assert np.array_equal(read.alpha, samples[:, :, 1])
    assert np.array_equal(load(tmp_path / "b.tif"), samples)


def test_a_16_bit_png_by_its_specification(png: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, b"\0" + bytes(range(12)), (b"tRNS", bytes(range(6)))))
    read = read_picture(tmp_path / "a.png", deep=True)
    assert read.pixels[0, 1].tolist() == [0x0607, 0x0809, 0x0A0B]
    assert read.alpha is not None
    assert read.alpha.tolist() == [[0, 65535]]
    assert read.hidden is not None
    assert read.hidden.tolist() == [[0x0001, 0x0203, 0x0405]]


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_every_layout_of_a_16_bit_tiff(planes: str, order: Any, compression: str | None, tmp_path: Path) -> None:
    samples = ramp(3)
    stored = samples if planes == "contig" else np.moveaxis(samples, 2, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planes, byteorder=order, compression=compression
    )
    assert np.array_equal(read_picture(tmp_path / "a.tif", deep=True).pixels, samples)


def test_white_is_zero(tmp_path: Path) -> None:
    samples = ramp(1)[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif", deep=True).pixels[:, :, 2], 65535 - samples)


@pytest.mark.parametrize("source", [".png", ".tif"])
@pytest.mark.parametrize("target", [".png", ".tif"])
def test_metadata_of_16_bit_files_is_kept(
    source: str, target: str, camera_exif: Maker, xmp: Maker, icc: bytes, tmp_path: Path
) -> None:
    block = camera_exif(1).removeprefix(b"Exif\0\0")
    given = Picture(pixels=ramp(3), icc=icc, exif=block, xmp=xmp(1), dpi=(150, 300))
    write_picture(tmp_path / f"a{source}", given)
    write_picture(tmp_path / f"b{target}", read_picture(tmp_path / f"a{source}", deep=True))
    with Image.open(tmp_path / f"b{target}") as image:
        exif = image.getexif()
        assert image.info["icc_profile"] == icc
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.02)
        assert exif[ExifTags.Base.Make] == "Maker"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2024:05:06 07:08:09"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        image.load()
        assert image.info["xmp"] == xmp(1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_16_bit_file_is_turned_like_one_of_8(orientation: int, camera_exif: Maker, tmp_path: Path) -> None:
    samples = ramp(3)
    block = camera_exif(orientation).removeprefix(b"Exif\0\0")
    for dtype in (np.uint8, np.uint16):
        pixels = (samples >> 8).astype(dtype)
        write_picture(tmp_path / f"{dtype.__name__}.png", Picture(pixels=pixels, exif=block))
    eight = read_picture(tmp_path / "uint8.png")
    sixteen = read_picture(tmp_path / "uint16.png", deep=True)
    assert np.array_equal(eight.pixels, sixteen.pixels)
    assert eight.exif == sixteen.exif


def test_a_turned_16_bit_tiff(tmp_path: Path) -> None:
    samples = ramp(4)
    extra: list[Any] = [(274, "H", 1, 6)]
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", extrasamples=["unassalpha"], extratags=extra)
    read = read_picture(tmp_path / "a.tif", deep=True)
    assert np.array_equal(read.pixels, np.rot90(samples[:, :, :3], -1))
    assert read.alpha is not None
    assert np.array_equal(read.alpha, np.rot90(samples[:, :, 3], -1))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_without_deep_16_bits_are_refused(name: str, tmp_path: Path) -> None:
    save(tmp_path / name, ramp(3))
    with pytest.raises(PictureError, match=r"deep\.\w+ has more than 8 bits a channel \(16 bits\)"):
        read_picture(tmp_path / name)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("dtype", "words"), [(np.uint32, "32 bits"), (np.float32, "floating"), (np.int16, "signed")])
def test_other_depths_are_refused_by_name(dtype: type[Any], words: str, deep: bool, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((8, 8), dtype), photometric="minisblack")
    with pytest.raises(PictureError, match=rf"more than 8 bits a channel \(.*{words}.*Convert it to 8"):
        read_picture(tmp_path / "deep.tif", deep=deep)


def test_twelve_bits_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint16), bitspersample=12, photometric="minisblack")
    with pytest.raises(PictureError, match="12 bits"):
        read_picture(tmp_path / "a.tif", deep=True)


def test_16_bit_colours_that_are_no_rgb_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ramp(4), photometric="separated")
    with pytest.raises(PictureError, match="of a kind that is not supported"):
        read_picture(tmp_path / "a.tif", deep=True)
    tifffile.imwrite(tmp_path / "b.tif", ramp(4), photometric="rgb", extrasamples=["assocalpha"])
    with pytest.raises(PictureError, match="multiplied by alpha"):
        read_picture(tmp_path / "b.tif", deep=True)


@pytest.mark.parametrize("name", ["b.jpg", "b.webp"])
def test_16_bits_do_not_go_into_8_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"has 8 bits a channel, the picture 16\. Choose \.png or \.tif"):
        write_picture(tmp_path / name, Picture(pixels=ramp(3)))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_16_bit_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (200, 200, 3), np.uint16)
    save(tmp_path / name, samples)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(PictureError, match=r"cannot be decoded"):
        read_picture(tmp_path / name, deep=True)


@pytest.mark.parametrize("compression", [None, "adobe_deflate", "lzw"])
def test_a_16_bit_tiff_whose_last_tile_is_missing_is_refused(compression: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    samples = np.random.default_rng(0).integers(0, 65536, (128, 64, 3), np.uint16)
    tifffile.imwrite(path, samples, photometric="rgb", tile=(64, 64), compression=compression)
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages.first.dataoffsets[-1]
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(PictureError, match=r"cannot be decoded: it is cut short"):
        read_picture(path, deep=True)


def test_grey_is_weighed_as_at_8_bits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    write_picture(tmp_path / "8.png", Picture(pixels=pixels, grey=True))
    write_picture(tmp_path / "16.png", Picture(pixels=pixels.astype(np.uint16) * 257, grey=True))
    difference = load(tmp_path / "16.png") / 257 - load(tmp_path / "8.png")
    assert np.abs(difference).max() <= 0.51


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    save(tmp_path / "a.png", ramp(3))
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from pathlib import Path\n"
        "from msan_runtime.errors import MissingExtraError\n"
        "from msan_runtime.image import read_picture\n"
        "try: read_picture(Path(sys.argv[1]), deep=True)\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert "pip install 'msan[deep]'" in done.stdout


def test_a_comparison_of_16_bit_pictures_has_8() -> None:
    sheet = side_by_side(np.full((8, 8, 3), 65535, np.uint16), np.full((8, 8, 3), 257 * 7, np.uint16))
    assert sheet.dtype == np.uint8
    assert sheet[-1, 0].tolist() == [255, 255, 255]
    assert sheet[-1, -1].tolist() == [7, 7, 7]
