"""What a file tells besides its pixels: kept byte for byte, from format to format, read back by Pillow and tifffile."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from msan_runtime.contract import PictureArray
from msan_runtime.image import Picture, read_picture, write_picture

Sample = Callable[[str], Image.Image]
Noise = Callable[..., PictureArray]
Maker = Callable[[int], bytes]

FORMATS = [".jpg", ".png", ".tif", ".webp"]
LOSSLESS: dict[str, dict[str, Any]] = {".png": {}, ".tif": {}, ".webp": {"lossless": True, "exact": True}}
MODES = {".jpg": ["L", "RGB"], ".png": ["L", "LA", "RGB", "RGBA"], ".webp": ["RGB", "RGBA"]}
MODES[".tif"] = MODES[".png"]


def save(path: Path, image: Image.Image, exif: bytes, xmp: bytes, icc: bytes | None) -> None:
    """A file by Pillow with all metadata, 300 dpi across and 150 down."""
    settings: dict[str, Any] = {"exif": exif, "icc_profile": icc, "dpi": (300, 150)}
    if path.suffix == ".png":
        settings["pnginfo"] = PngInfo()
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif path.suffix == ".tif":
        settings["exif"] = with_tags(exif, {700: xmp})
    else:
        settings["xmp"] = xmp
    if path.suffix == ".webp":
        settings["exif"] = with_tags(exif, {282: 300.0, 283: 150.0, 296: 2})
    image.save(path, **settings | LOSSLESS.get(path.suffix, {}))


def with_tags(exif: bytes, tags: dict[int, Any]) -> bytes:
    block = Image.Exif()
    block.load(exif)
    for tag, value in tags.items():
        block[tag] = value
    return block.tobytes()


def told(path: Path) -> dict[str, Any]:
    """What Pillow reads in a file."""
    with Image.open(path) as image:
        exif = image.getexif()
        return {
            "icc": image.info.get("icc_profile"),
            "xmp": image.info.get("xmp"),
            "dpi": image.info.get("dpi") or tuple(float(exif[tag]) for tag in (282, 283) if tag in exif),
            "orientation": exif.get(ExifTags.Base.Orientation, 1),
            "make": exif.get(ExifTags.Base.Make),
            "exif": exif.get_ifd(ExifTags.IFD.Exif),
            "gps": exif.get_ifd(ExifTags.IFD.GPSInfo),
        }


@pytest.mark.parametrize(("source", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
@pytest.mark.parametrize("target", FORMATS)
def test_all_that_a_file_tells_is_told_by_the_result(
    source: str, mode: str, target: str, sample: Sample, camera_exif: Maker, xmp: Maker, icc: bytes, tmp_path: Path
) -> None:
    if target == ".jpg" and "A" in mode:
        return
    save(tmp_path / f"a{source}", sample(mode), camera_exif(6), xmp(6), icc)
    write_picture(tmp_path / f"b{target}", read_picture(tmp_path / f"a{source}"))
    result = told(tmp_path / f"b{target}")
    assert result["icc"] == icc
    assert result["xmp"] == xmp(1)
    assert result["dpi"] == pytest.approx((150, 300), abs=0.02)  # turned; PNG counts in metres
    assert result["orientation"] == 1
    assert result["make"] == "Maker"
    assert result["exif"][ExifTags.Base.DateTimeOriginal] == "2024:05:06 07:08:09"
    assert result["exif"][ExifTags.Base.ExifImageWidth] == 24
    assert result["exif"][ExifTags.Base.ExifImageHeight] == 40
    assert result["gps"][ExifTags.GPS.GPSLatitudeRef] == "N"
    assert result["gps"][ExifTags.GPS.GPSLatitude] == (47.0, 30.0, 7.5)


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp"])
def test_an_exif_block_is_kept_byte_for_byte(source: str, target: str, sample: Sample, tmp_path: Path) -> None:
    # Big-endian, a maker note that Pillow could not rewrite, an unknown tag, a gap.
    note = b"Maker\0note" + bytes(range(50))
    inner = struct.pack(">HHHIII", 1, 0x927C, 7, len(note), 80, 0)
    first = struct.pack(">HHHIHHHHIIHHII", 3, 0x0112, 3, 1, 1, 0, 0x8769, 4, 1, 50, 0xC000, 3, 1, 7 << 16) + bytes(4)
    block = (b"MM\0*\0\0\0\x08" + first + inner).ljust(80, b"\0") + note
    sample("RGB").save(tmp_path / f"a{source}", exif=b"Exif\0\0" + block)
    write_picture(tmp_path / f"b{target}", read_picture(tmp_path / f"a{source}"))
    with Image.open(tmp_path / f"b{target}") as image:
        assert image.info["exif"].removeprefix(b"Exif\0\0") == block


def test_the_maker_note_reaches_a_tiff_and_comes_back(sample: Sample, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.MakerNote: b"note" * 20, ExifTags.Base.ISOSpeedRatings: 400}
    sample("RGB").save(tmp_path / "a.jpg", exif=exif)
    write_picture(tmp_path / "b.tif", read_picture(tmp_path / "a.jpg"))
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tag = tiff.pages.first.tags["ExifTag"].value
    assert tag["MakerNote"] == b"note" * 20
    assert tag["ISOSpeedRatings"] == 400
    write_picture(tmp_path / "c.jpg", read_picture(tmp_path / "b.tif"))
    with Image.open(tmp_path / "c.jpg") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] == b"note" * 20


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: np.swapaxes(a, 0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.swapaxes(np.rot90(a, 2), 0, 1)),
        (8, np.rot90),
    ],
)
def test_orientation_is_applied_exactly_once(
    suffix: str,
    grey: bool,
    orientation: int,
    turned: Callable[[Any], Any],
    noise: Noise,
    camera_exif: Maker,
    tmp_path: Path,
) -> None:
    pixels = noise(5, 9, 3)
    if grey:
        pixels[:] = pixels[:, :, :1]
    source, result = tmp_path / f"turned{suffix}", tmp_path / "result.png"
    image = Image.fromarray(pixels).convert("L" if grey else "RGB")
    image.save(source, exif=camera_exif(orientation), **LOSSLESS[suffix])
    read = read_picture(source)
    assert np.array_equal(read.pixels, turned(pixels))
    write_picture(result, read)
    assert np.array_equal(read_picture(result).pixels, turned(pixels))
    assert told(result)["orientation"] == 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_and_hidden_colours_are_turned_with_the_rest(
    suffix: str, noise: Noise, camera_exif: Maker, tmp_path: Path
) -> None:
    pixels = noise(5, 9, 4)
    pixels[1:3, 2:7, 3] = 0
    Image.fromarray(pixels).save(tmp_path / f"turned{suffix}", exif=camera_exif(6))
    write_picture(tmp_path / "result.png", read_picture(tmp_path / f"turned{suffix}"))
    with Image.open(tmp_path / "result.png") as image:
        assert np.array_equal(np.array(image), np.rot90(pixels, -1))


def test_an_orientation_only_in_the_xmp_packet_counts(
    sample: Sample, xmp: Maker, camera_exif: Maker, tmp_path: Path
) -> None:
    sample("RGB").save(tmp_path / "a.jpg", xmp=xmp(8))
    sample("RGB").save(tmp_path / "b.jpg", xmp=xmp(8), exif=camera_exif(1))
    assert read_picture(tmp_path / "a.jpg").pixels.shape == (40, 24, 3)
    assert read_picture(tmp_path / "a.jpg").xmp == xmp(1)
    assert read_picture(tmp_path / "b.jpg").pixels.shape == (24, 40, 3)


def test_an_xmp_orientation_in_an_element_is_reset(sample: Sample, tmp_path: Path) -> None:
    packet = b"<x><tiff:Orientation>6</tiff:Orientation></x>"
    sample("RGB").save(tmp_path / "a.jpg", xmp=packet)
    assert read_picture(tmp_path / "a.jpg").xmp == packet.replace(b"6", b"1")


def test_the_thumbnail_of_the_blurred_picture_is_gone(sample: Sample, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    sample("RGB").resize((16, 8)).save(buffer, "JPEG")
    thumbnail = buffer.getvalue()
    first = struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 1, 0, 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    block = b"II*\0\x08\0\0\0" + first + second + thumbnail
    sample("RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)
    write_picture(tmp_path / "b.jpg", read_picture(tmp_path / "a.jpg"))
    with Image.open(tmp_path / "b.jpg") as image:
        assert not image.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert thumbnail not in image.info["exif"]


@pytest.mark.parametrize("target", FORMATS)
def test_a_file_without_metadata_gets_none(target: str, sample: Sample, tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert (read.exif, read.icc, read.xmp, read.dpi) == (None, None, None, None)
    write_picture(tmp_path / f"b{target}", read)
    again = read_picture(tmp_path / f"b{target}")
    assert (again.exif, again.icc, again.xmp, again.dpi) == (None, None, None, None)


@pytest.mark.parametrize("value", [72.0, 299.9994, 96.012, 1200.0])
@pytest.mark.parametrize("target", FORMATS)
def test_resolutions_are_kept_as_well_as_the_format_can(
    target: str, value: float, noise: Noise, tmp_path: Path
) -> None:
    write_picture(tmp_path / f"a{target}", Picture(pixels=noise(4, 4, 3), dpi=(value, 2 * value)))
    step = 0.5 if target == ".jpg" else 0.0254 if target == ".png" else 0.0001
    assert read_picture(tmp_path / f"a{target}").dpi == pytest.approx((value, 2 * value), abs=step)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("kind", "swapped"),
    [(7, False), (1, False), (4, False), (4, True)],  # 32-bit numbers by mistake: as they stand, or by the file's order
)
def test_the_iptc_records_of_a_tiff_stay_in_a_tiff(
    order: Literal["<", ">"], dtype: type[Any], kind: int, swapped: bool, noise: Noise, tmp_path: Path
) -> None:
    records = b"\x1c\x02\x5a\0\x05Paris\0\0"
    stored = np.frombuffer(records, "<u4").astype(f"{order}u4").tobytes() if swapped else records
    count = len(stored) // 4 if kind == 4 else len(stored)
    tags = [(33723, kind, count, stored, False)]
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 4, 3).astype(dtype), byteorder=order, extratags=tags)
    write_picture(tmp_path / "b.tif", read_picture(tmp_path / "a.tif", deep=True))
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        assert tiff.pages.first.tags[33723].value == records
    write_picture(tmp_path / "c.png", read_picture(tmp_path / "b.tif", deep=True))
    assert b"Paris" not in (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_tags_of_how_a_tiff_is_stored_do_not_reach_the_result(
    mode: str, sample: Sample, camera_exif: Maker, tmp_path: Path
) -> None:
    sample(mode).save(tmp_path / "a.tif", exif=camera_exif(1))
    read = read_picture(tmp_path / "a.tif")
    write_picture(tmp_path / "b.tif", read)
    written = tifffile.imread(tmp_path / "b.tif")
    assert np.array_equal(written, read.pixels[:, :, 0] if read.grey else read.pixels)


def test_a_grey_profile_is_kept_where_grey_is(sample: Sample, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    sample("L").save(tmp_path / "a.png", icc_profile=bytes(profile))
    read = read_picture(tmp_path / "a.png")
    for name in ("b.png", "b.jpg", "b.tif"):
        write_picture(tmp_path / name, read)
        assert told(tmp_path / name)["icc"] == bytes(profile)
    assert not caplog.records
    write_picture(tmp_path / "b.webp", read)
    assert read_picture(tmp_path / "b.webp").icc is None
    assert f"{tmp_path / 'b.webp'}: a grey colour profile is left out" in caplog.text


def test_texts_and_colour_chunks_of_a_png_stay_in_a_png(png: Callable[..., bytes], tmp_path: Path) -> None:
    chunks = [(b"gAMA", struct.pack(">I", 45455)), (b"tEXt", b"Title\0a"), (b"zTXt", b"Long\0\0" + zlib.compress(b"b"))]
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 2, bytes(7), *chunks))
    write_picture(tmp_path / "b.png", read_picture(tmp_path / "a.png"))
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["gamma"] == 0.45455
        assert image.info["Title"] == "a"
        assert image.info["Long"] == "b"


def test_exif_that_imagemagick_wrote_as_text_is_read(
    png: Callable[..., bytes], camera_exif: Maker, tmp_path: Path
) -> None:
    exif = camera_exif(6)
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode()))
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 2, bytes(7), (b"zTXt", text)))
    read = read_picture(tmp_path / "a.png")
    assert read.pixels.shape == (2, 1, 3)
    write_picture(tmp_path / "b.png", read)
    assert told(tmp_path / "b.png")["make"] == "Maker"
    assert told(tmp_path / "b.png")["orientation"] == 1


def test_a_damaged_exif_block_is_left_out_aloud(
    sample: Sample, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    sample("RGB").save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    assert read_picture(tmp_path / "a.jpg").exif is None
    assert f"{tmp_path / 'a.jpg'}: a damaged EXIF block is left out" in caplog.text


def test_what_a_jpeg_cannot_hold_is_left_out_aloud(
    noise: Noise, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    write_picture(tmp_path / "a.jpg", Picture(pixels=noise(4, 4, 3), xmp=bytes(70_000)))
    assert read_picture(tmp_path / "a.jpg").xmp is None
    assert "XMP packet of 70029 bytes is left out" in caplog.text
