"""How results are compressed: like their source, or as asked for. Markers and chunks are read by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from msan_runtime.contract import PictureArray
from msan_runtime.errors import ContractError, PictureError
from msan_runtime.image import EncodeOptions, Picture, read_picture, write_picture

Sample = Callable[[str], Image.Image]
Noise = Callable[..., PictureArray]


def segments(path: Path) -> Iterator[tuple[int, bytes]]:
    """Markers and contents of a JPEG up to its scan (ITU-T T.81, annex B)."""
    data, position = path.read_bytes(), 2
    while data[position + 1] != 0xDA:
        length = struct.unpack(">H", data[position + 2 : position + 4])[0]
        yield data[position + 1], data[position + 4 : position + 2 + length]
        position += 2 + length


def tables(path: Path) -> list[bytes]:
    """The quantisation tables, in the order of the components that use them."""
    found: dict[int, bytes] = {}
    frame = b""
    for marker, data in segments(path):
        if marker == 0xDB:
            for start in range(0, len(data), 65):
                found[data[start]] = data[start + 1 : start + 65]
        elif marker in (0xC0, 0xC2):
            frame = data
    return [found[frame[8 + 3 * component]] for component in range(frame[5])]


def frame(path: Path) -> tuple[int, list[int]]:
    """The kind of frame (0xC0 baseline, 0xC2 progressive) and the sampling factors of its components."""
    marker, data = next((marker, data) for marker, data in segments(path) if marker in (0xC0, 0xC1, 0xC2))
    return marker, [data[7 + 3 * component] for component in range(data[5])]


@pytest.mark.parametrize("quality", [30, 75, 92, 100])
@pytest.mark.parametrize(("subsampling", "luma"), [("4:4:4", 0x11), ("4:2:2", 0x21), ("4:2:0", 0x22)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_compressed_like_its_source(
    quality: int, subsampling: str, luma: int, progressive: bool, sample: Sample, tmp_path: Path
) -> None:
    source, result = tmp_path / "a.jpg", tmp_path / "b.jpg"
    sample("RGB").save(source, quality=quality, subsampling=subsampling, progressive=progressive)
    write_picture(result, read_picture(source))
    assert tables(result) == tables(source)
    assert frame(result) == frame(source) == (0xC2 if progressive else 0xC0, [luma, 0x11, 0x11])


def test_a_grey_jpeg_keeps_its_one_table(sample: Sample, tmp_path: Path) -> None:
    sample("L").save(tmp_path / "a.jpg", quality=60)
    write_picture(tmp_path / "b.jpg", read_picture(tmp_path / "a.jpg"))
    assert tables(tmp_path / "b.jpg") == tables(tmp_path / "a.jpg")
    assert len(tables(tmp_path / "b.jpg")) == 1


def test_what_is_asked_for_comes_before_the_source(sample: Sample, tmp_path: Path) -> None:
    source, result, expected = (tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg"))
    sample("RGB").save(source, quality=60, subsampling="4:2:0")
    sample("RGB").save(expected, quality=88, subsampling="4:2:0")
    write_picture(result, read_picture(source), EncodeOptions(jpeg_quality=88))
    assert tables(result) == tables(expected)
    assert frame(result) == frame(source)
    write_picture(result, read_picture(source), EncodeOptions(jpeg_subsampling="4:4:4"))
    assert tables(result) == tables(source)
    assert frame(result)[1] == [0x11, 0x11, 0x11]


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_without_a_usable_source_a_jpeg_is_of_quality_95_in_full_colour(
    mode: str, sample: Sample, tmp_path: Path
) -> None:
    sample("RGB").save(tmp_path / "expected.jpg", quality=95, subsampling=0)
    source = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    sample(mode).save(source)
    write_picture(tmp_path / "b.jpg", read_picture(source))
    assert tables(tmp_path / "b.jpg") == tables(tmp_path / "expected.jpg")
    assert frame(tmp_path / "b.jpg") == frame(tmp_path / "expected.jpg")


def test_noise_that_overflows_progressive_scans_is_written_without_them(
    noise: Noise, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    Image.fromarray(noise(600, 800, 3)).save(tmp_path / "a.jpg", qtables=[[1] * 64] * 2, subsampling=0)
    read = read_picture(tmp_path / "a.jpg")
    Image.fromarray(noise(60, 80, 3)).save(tmp_path / "p.jpg", qtables=[[1] * 64] * 2, subsampling=0, progressive=True)
    coding = read_picture(tmp_path / "p.jpg").coding
    write_picture(tmp_path / "b.jpg", Picture(pixels=read.pixels, coding=coding))
    assert f"{tmp_path / 'b.jpg'}: written without progressive scans" in caplog.text
    assert frame(tmp_path / "b.jpg")[0] == 0xC0
    assert peak_signal_noise_ratio(read.pixels, read_picture(tmp_path / "b.jpg").pixels) > 45


def test_comments_iptc_and_long_xmp_stay_in_a_jpeg(sample: Sample, tmp_path: Path) -> None:
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x05\x1c\x02\x78\0\0\0"
    extension = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + bytes(8) + b"<x/>"
    extra = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in ((0xED, iptc), (0xE1, extension))
    )
    sample("RGB").save(tmp_path / "a.jpg", extra=extra, comment=b"by hand")
    write_picture(tmp_path / "b.jpg", read_picture(tmp_path / "a.jpg"))
    assert {(0xED, iptc), (0xE1, extension), (0xFE, b"by hand")} <= set(segments(tmp_path / "b.jpg"))


def chunks(path: Path) -> set[bytes]:
    """Types of the chunks of a WebP."""
    data, position, found = path.read_bytes(), 12, set[bytes]()
    while position < len(data):
        found.add(data[position : position + 4])
        length = struct.unpack("<I", data[position + 4 : position + 8])[0]
        position += 8 + length + length % 2
    return found


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    ("name", "settings", "lossless"),
    [
        ("a.webp", {"lossless": True}, True),
        ("a.webp", {"quality": 80}, False),
        ("a.png", {}, True),
        ("a.tif", {}, True),
        ("a.tif", {"compression": "jpeg"}, False),
        ("a.jpg", {}, False),
    ],
)
def test_a_webp_is_lossless_if_its_source_is(
    name: str, settings: dict[str, Any], lossless: bool, mode: str, sample: Sample, icc: bytes, tmp_path: Path
) -> None:
    if mode == "RGBA" and "jp" in name + str(settings):
        return
    sample(mode).save(tmp_path / name, icc_profile=icc, **settings)
    read = read_picture(tmp_path / name)
    write_picture(tmp_path / "b.webp", read)
    assert (b"VP8L" in chunks(tmp_path / "b.webp")) == lossless
    assert np.array_equal(read_picture(tmp_path / "b.webp").pixels, read.pixels) == lossless
    write_picture(tmp_path / "c.webp", read, EncodeOptions(webp_quality=50))
    assert b"VP8 " in chunks(tmp_path / "c.webp")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_are_written_well(suffix: str, tmp_path: Path) -> None:
    pixels = astronaut()[:256, :256]
    write_picture(tmp_path / f"a{suffix}", Picture(pixels=pixels))
    assert peak_signal_noise_ratio(pixels, read_picture(tmp_path / f"a{suffix}").pixels) > 38


@pytest.mark.parametrize("quality", [0, 101, -1])
def test_a_quality_out_of_range_is_refused(quality: int) -> None:
    with pytest.raises(ContractError, match=f"1 to 100, not {quality}"):
        EncodeOptions(jpeg_quality=quality)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.jpg.txt"])
def test_a_name_of_no_known_format_is_refused(name: str, noise: Noise, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"must end in \.jpeg, \.jpg, \.png"):
        write_picture(tmp_path / name, Picture(pixels=noise(4, 4, 3)))
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_is_refused(noise: Noise, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PictureError, match=r"cannot write .*a\.png: "):
        write_picture(tmp_path / "file" / "a.png", Picture(pixels=noise(4, 4, 3)))


def test_folders_are_made_as_needed(noise: Noise, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    write_picture(path, Picture(pixels=noise(4, 4, 3)))
    assert read_picture(path).pixels.shape == (4, 4, 3)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(b"old")
    with pytest.raises(PictureError, match=r"cannot write .*a\.webp: WebP takes 16383 px"):
        write_picture(path, Picture(pixels=np.zeros((1, 16384, 3), np.uint8)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
