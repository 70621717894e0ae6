"""What is refused: damaged, cut, huge and animated files; and reading in many threads under any filter of warnings."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from msan_runtime.contract import PictureArray
from msan_runtime.errors import PictureError
from msan_runtime.image import read_picture, write_picture
from msan_runtime.pictures.picture import FileFormat, Picture
from msan_runtime.pictures.writing import can_hold, encode_picture

Sample = Callable[[str], Image.Image]
Noise = Callable[..., PictureArray]
Maker = Callable[[int], bytes]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, I am a text", "is not a JPEG, PNG, WebP or TIFF picture"),
        (b"", "is not a JPEG, PNG, WebP or TIFF picture"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"II*\0\x08\0\0\0\0\0", "cannot be decoded"),
        (b"II*\0", "cannot be decoded"),
        (b"RIFF\x04\0\0\0WEBP", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_path(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=words) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path} ")


def test_a_picture_of_another_format_is_refused(sample: Sample, tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / "a.jpg", "BMP")
    with pytest.raises(PictureError, match="is not a JPEG, PNG, WebP or TIFF picture"):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cut.jpg", {}),
        ("cut.jpg", {"progressive": True}),
        ("cut.png", {}),
        ("cut.webp", {}),
        ("cut.webp", {"lossless": True}),
        ("cut.tif", {}),
        ("cut.tif", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8, 0.99])
def test_a_cut_file_is_refused_and_not_filled_with_grey(
    name: str, settings: dict[str, Any], share: float, noise: Noise, tmp_path: Path
) -> None:
    path = tmp_path / name
    Image.fromarray(noise(64, 64, 3)).save(path, **settings)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(PictureError, match=rf"cut\{path.suffix} (cannot be decoded|is not a)"):
        read_picture(path)


def test_a_damaged_file_is_refused_or_read_without_a_warning(
    sample: Sample, camera_exif: Maker, xmp: Maker, icc: bytes, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    contents: list[bytes] = []
    for name in ("JPEG", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        sample("RGB").save(buffer, name, exif=camera_exif(6), icc_profile=icc, xmp=xmp(6), dpi=(300, 300))
        contents.append(buffer.getvalue())
    complaints: list[str] = []
    for turn in range(600):
        data = bytearray(contents[turn % 4])
        for position in rng.integers(0, min(len(data), 900), 3):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            read = read_picture(path, deep=True)
            write_picture(tmp_path / "result.tif", read)
            assert read.pixels.shape[2] == 3
        except PictureError as error:
            complaints.append(str(error))
    assert 0 < len(complaints) < 600
    assert all(complaint.startswith(f"{path} ") for complaint in complaints)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_png_whose_pixels_are_damaged_is_refused(share: float, noise: Noise, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(64, 64, 3)).save(path, compress_level=0)  # stored: any value of a byte can be decoded
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(PictureError, match=r"a\.png cannot be decoded: its pixels are damaged"):
        read_picture(path)


@pytest.mark.parametrize("make", [Path.mkdir, str])
def test_a_folder_or_a_missing_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(PictureError, match=r"a\.png cannot be read: (Is a directory|No such file)"):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_several_pictures_in_one_file_are_refused_with_their_number(suffix: str, noise: Noise, tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in noise(3, 8, 8, 3)]
    frames[0].save(tmp_path / f"many{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match=rf"many\{suffix} holds 3 pictures"):
        read_picture(tmp_path / f"many{suffix}")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_limit_of_pixels_is_the_one_given(
    suffix: str, noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(noise(30, 50, 3)).save(tmp_path / f"large{suffix}")
    # Pillow's own limit, of the whole process, warns from here on; it neither warns nor counts.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_picture(tmp_path / f"large{suffix}", max_pixels=1500).pixels.shape == (30, 50, 3)
    with pytest.raises(PictureError, match=r"large\.\w+ is too large: 0\.0 megapixels, the limit is 0\.0"):
        read_picture(tmp_path / f"large{suffix}", max_pixels=1499)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_pillows_own_limit_refuses_nothing(
    suffix: str, noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(noise(30, 50, 3)).save(tmp_path / f"large{suffix}")
    monkeypatch.setattr("msan_runtime.pictures.strips.STRIP_PIXELS", 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_picture(tmp_path / f"large{suffix}").pixels.shape == (30, 50, 3)


def huge_png(side_px: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(100_000))
    with pytest.raises(PictureError, match=r"too large: 10,000\.0 megapixels, the limit is 200\.0"):
        read_picture(tmp_path / "bomb.png")
    (tmp_path / "bomb.png").write_bytes(huge_png(14_142))
    with pytest.raises(PictureError, match="cannot be decoded"):  # under the limit: tried, and found empty
        read_picture(tmp_path / "bomb.png")


def test_a_bomb_in_the_metadata_is_refused(
    png: Callable[..., bytes], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    bomb = zlib.compress(bytes(200_000_000))
    chunks = [(b"iCCP", b"icc\0\0" + bomb), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)]
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 2, bytes(7), *chunks))
    with pytest.raises(PictureError):
        read_picture(tmp_path / "a.png")
    assert f"{tmp_path / 'a.png'}: a damaged colour profile is left out" in caplog.text
    assert "XMP packet is left out" in caplog.text


THREADS = """
import random, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
from msan_runtime.image import read_picture, write_picture
from msan_runtime.pictures.picture import FileFormat, Picture
from msan_runtime.pictures.writing import can_hold, encode_picture

Image.MAX_IMAGE_PIXELS = 900
before = list(warnings.filters)
folder = Path(sys.argv[1])
files = sorted(folder.glob("in/*")) * 15
random.Random(0).shuffle(files)

def turn(numbered):
    number, path = numbered
    picture = read_picture(path)
    write_picture(folder / f"out/{number}{path.suffix}", picture)
    return picture.pixels.tobytes() == read_picture(path).pixels.tobytes()

with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(turn, enumerate(files)))
assert warnings.filters == before, warnings.filters
print(len(files))
"""


def test_many_threads_read_and_write_at_once_with_warnings_as_errors(
    sample: Sample, camera_exif: Maker, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    odd_exif = camera_exif(6)[:-20]  # Pillow warns of what is missing
    for name in ("a.jpg", "b.png", "c.tif", "d.webp"):
        sample("RGB").save(tmp_path / "in" / name, exif=odd_exif if name != "c.tif" else camera_exif(6))
    command = [sys.executable, "-W", "error", "-c", THREADS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "60"
    for path in (tmp_path / "out").iterdir():
        assert read_picture(path).pixels.shape == (40, 24, 3)


def test_warnings_of_others_are_not_silenced(sample: Sample, tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / "a.jpg")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_picture, [tmp_path / "a.jpg"] * 40))
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_the_same_picture_is_read_whatever_the_order_of_threads(noise: Noise, tmp_path: Path) -> None:
    pixels = {f"{index}.png": noise(20 + index, 30, 3) for index in range(10)}
    for name, array in pixels.items():
        Image.fromarray(array).save(tmp_path / name)
    names = list(pixels) * 5
    random.Random(1).shuffle(names)
    with ThreadPoolExecutor(6) as pool:
        results = pool.map(lambda name: read_picture(tmp_path / name).pixels, names)
    assert all(np.array_equal(result, pixels[name]) for name, result in zip(names, results, strict=True))


def test_a_jpeg_cut_anywhere_in_its_headers_is_said_to_be_cut_short(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    data = (tmp_path / "a.jpg").read_bytes()
    for size_bytes in range(3, 150):
        (tmp_path / "b.jpg").write_bytes(data[:size_bytes])
        with pytest.raises(PictureError, match=r"b\.jpg cannot be decoded: it.* cut short$"):
            read_picture(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    "picture",
    [
        Picture(pixels=np.zeros((4, 4, 3), np.uint8)),
        Picture(pixels=np.zeros((4, 4, 3), np.uint8), alpha=np.full((4, 4), 9, np.uint8)),
        Picture(pixels=np.zeros((4, 4, 3), np.uint16)),
        Picture(pixels=np.zeros((1, 16_383, 3), np.uint8)),
        Picture(pixels=np.zeros((16_384, 1, 3), np.uint8)),
        Picture(pixels=np.zeros((1, 65_500, 3), np.uint8)),
        Picture(pixels=np.zeros((1, 65_501, 3), np.uint8)),
    ],
    ids=["plain", "alpha", "deep", "wide", "wider", "widest", "beyond"],
)
@pytest.mark.parametrize("file_format", get_args(FileFormat))
def test_what_a_format_can_hold_is_what_its_writer_takes(file_format: FileFormat, picture: Picture) -> None:
    try:
        encode_picture(picture, file_format, name="the result")
    except PictureError:
        assert not can_hold(file_format, picture)
    else:
        assert can_hold(file_format, picture)
