"""Picture files against Pillow, tifffile and hand-made bytes: what is kept, what is converted, what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from msan_runtime.contract import PictureArray
from msan_runtime.errors import PictureError
from msan_runtime.image import SUFFIXES, Picture, read_picture, write_picture

Noise = Callable[..., PictureArray]

LOSSLESS: dict[str, dict[str, Any]] = {".png": {}, ".tif": {}, ".webp": {"lossless": True, "exact": True}}
MODES = {
    ".jpg": ("L", "RGB", "CMYK", "YCbCr"),
    ".png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    ".tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
    ".webp": ("RGB", "RGBA"),
}
EVERY_MODE = [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]


def icc_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def sample(mode: str) -> Image.Image:
    """A picture of smooth ramps, 24 high and 40 wide, whose alpha (where it has one) is neither 0 nor 255."""
    y, x = np.mgrid[:24, :40]
    image = Image.fromarray(np.stack([x * 6, y * 10, 255 - x * 3 - y], axis=2).astype(np.uint8))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray((60 + x * 2).astype(np.uint8)))
    return image.convert(mode)


def picture(pixels: PictureArray, **changes: Any) -> Picture:
    values: dict[str, Any] = {"alpha": None, "grey": False, "icc": None, "exif": None}
    return Picture(pixels=pixels, **{**values, **changes})


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by its specification (RFC 2083)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def camera_exif(orientation: int) -> Image.Exif:
    """What a phone writes: a maker, an orientation, and inner directories with a time and a place."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: "2024:05:06 07:08:09"}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return exif


def test_the_suffixes_are_those_of_the_four_formats() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"} == SUFFIXES


@pytest.mark.parametrize(("suffix", "mode"), EVERY_MODE)
def test_every_mode_is_read_as_pillow_shows_it(suffix: str, mode: str, tmp_path: Path) -> None:
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
def test_every_mode_is_written_with_its_channels(suffix: str, mode: str, target: str, tmp_path: Path) -> None:
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
        if target in (".png", ".tif"):
            assert np.array_equal(np.array(image.convert("RGB")), read.pixels)
            assert read.alpha is None or np.array_equal(np.array(image.getchannel("A")), read.alpha)


def test_transparency_of_a_palette_picture_becomes_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "palette.png", transparency=0)
    read = read_picture(tmp_path / "palette.png")
    assert read.alpha is not None
    assert read.alpha.tolist() == [[0, 255, 255, 255], [255, 255, 255, 255]]
    assert read.pixels[0, 1].tolist() == [40, 50, 60]


def test_a_transparent_grey_level_becomes_alpha_and_the_picture_stays_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 8]], np.uint8)).save(tmp_path / "grey.png", transparency=7)
    read = read_picture(tmp_path / "grey.png")
    assert read.grey
    assert read.alpha is not None
    assert read.alpha.tolist() == [[0, 255]]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize(
    ("orientation", "upright"),
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
    suffix: str, grey: bool, orientation: int, upright: Callable[[Any], Any], noise: Noise, tmp_path: Path
) -> None:
    pixels = noise(5, 9, 3)
    if grey:
        pixels[:] = pixels[:, :, :1]
    source = tmp_path / f"turned{suffix}"
    image = Image.fromarray(pixels).convert("L" if grey else "RGB")
    image.save(source, exif=camera_exif(orientation).tobytes(), **LOSSLESS[suffix])
    read = read_picture(source)
    assert np.array_equal(read.pixels, upright(pixels))
    result = tmp_path / "result.png"
    write_picture(result, read)
    assert np.array_equal(read_picture(result).pixels, upright(pixels))
    with Image.open(result) as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_alpha_is_turned_with_the_colours(noise: Noise, tmp_path: Path) -> None:
    pixels = noise(5, 9, 4)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=camera_exif(6).tobytes())
    read = read_picture(tmp_path / "turned.png")
    assert np.array_equal(read.alpha, np.rot90(pixels[:, :, 3], -1))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("source", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp"])
def test_exif_is_kept_from_format_to_format(source: str, target: str, tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / f"a{source}", exif=camera_exif(6).tobytes())
    read = read_picture(tmp_path / f"a{source}")
    write_picture(tmp_path / f"b{target}", read)
    with Image.open(tmp_path / f"b{target}") as image:
        exif = image.getexif()
        assert image.size == (24, 40)
        assert ExifTags.Base.Orientation not in exif
        assert exif[ExifTags.Base.Make] == "Maker"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2024:05:06 07:08:09"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_a_tiff_with_exif_is_readable_by_others(tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / "a.jpg", exif=camera_exif(1).tobytes())
    read = read_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "b.tif", read)
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), read.pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_tags_of_how_a_tiff_is_stored_do_not_reach_the_result(mode: str, tmp_path: Path) -> None:
    sample(mode).save(tmp_path / "a.tif", exif=camera_exif(1).tobytes())
    read = read_picture(tmp_path / "a.tif")
    write_picture(tmp_path / "b.tif", read)
    written = tifffile.imread(tmp_path / "b.tif")
    assert np.array_equal(written, read.pixels[:, :, 0] if read.grey else read.pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_colour_profile_is_kept(suffix: str, tmp_path: Path) -> None:
    profile = icc_profile()
    sample("RGB").save(tmp_path / f"a{suffix}", icc_profile=profile)
    write_picture(tmp_path / f"b{suffix}", read_picture(tmp_path / f"a{suffix}"))
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.info["icc_profile"] == profile


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_the_profile_of_a_cmyk_picture_is_dropped_with_its_inks(suffix: str, tmp_path: Path) -> None:
    sample("CMYK").save(tmp_path / f"a{suffix}", icc_profile=icc_profile())
    write_picture(tmp_path / f"b{suffix}", read_picture(tmp_path / f"a{suffix}"))
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.mode == "RGB"
        assert "icc_profile" not in image.info


def test_a_file_without_metadata_gets_none(tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / "a.jpg")
    read = read_picture(tmp_path / "a.jpg")
    assert read.exif is None
    assert read.icc is None


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_are_written_well(suffix: str, tmp_path: Path) -> None:
    pixels = astronaut()[:256, :256]
    write_picture(tmp_path / f"a{suffix}", picture(pixels))
    assert peak_signal_noise_ratio(pixels, read_picture(tmp_path / f"a{suffix}").pixels) > 38


def test_jpeg_keeps_the_colours_at_full_resolution(tmp_path: Path) -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    write_picture(tmp_path / "a.jpg", picture(stripes))
    assert peak_signal_noise_ratio(stripes, read_picture(tmp_path / "a.jpg").pixels) > 30


def test_the_content_tells_the_format_and_not_the_name(noise: Noise, tmp_path: Path) -> None:
    pixels = noise(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(read_picture(tmp_path / "a.jpg").pixels, pixels)


@pytest.mark.parametrize("suffix", [".PNG", ".Tiff"])
def test_a_suffix_in_capitals_is_as_good(suffix: str, noise: Noise, tmp_path: Path) -> None:
    pixels = noise(4, 6, 3)
    write_picture(tmp_path / f"a{suffix}", picture(pixels))
    assert np.array_equal(read_picture(tmp_path / f"a{suffix}").pixels, pixels)


def test_a_phones_jpeg_with_a_preview_is_read_as_its_main_picture(tmp_path: Path) -> None:
    main, preview = sample("RGB"), Image.new("RGB", (8, 8))
    main.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[preview], exif=camera_exif(6).tobytes())
    with Image.open(tmp_path / "phone.jpg") as image:
        assert image.format == "MPO"
    read = read_picture(tmp_path / "phone.jpg")
    assert read.pixels.shape == (40, 24, 3)
    assert peak_signal_noise_ratio(np.rot90(np.array(main), -1), read.pixels) > 25


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_several_pictures_in_one_file_are_refused(suffix: str, noise: Noise, tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in noise(3, 8, 8, 3)]
    frames[0].save(tmp_path / f"many{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match=rf"many\{suffix} holds 3 pictures"):
        read_picture(tmp_path / f"many{suffix}")


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_a_png_of_16_bits_is_refused(colour: int, tmp_path: Path) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    (tmp_path / "deep.png").write_bytes(png(2, 1, 16, colour, b"\0" + bytes(range(4 * channels))))
    with pytest.raises(PictureError, match=r"deep\.png has more than 8 bits"):
        read_picture(tmp_path / "deep.png")


def test_the_hand_made_png_is_read_at_8_bits(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 8, 2, bytes([0, 1, 2, 3, 4, 5, 6])))
    assert read_picture(tmp_path / "a.png").pixels.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("dtype", "shape"), [(np.uint16, (8, 8, 3)), (np.uint16, (8, 8)), (np.float32, (8, 8))])
def test_a_tiff_of_more_than_8_bits_is_refused(
    dtype: type[Any], shape: tuple[int, ...], compression: str | None, tmp_path: Path
) -> None:
    kind = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros(shape, dtype), photometric=kind, compression=compression)
    with pytest.raises(PictureError, match=r"deep\.tif has more than 8 bits"):
        read_picture(tmp_path / "deep.tif")


def test_a_tiff_of_8_bits_is_never_taken_for_16(noise: Noise, tmp_path: Path) -> None:
    # Noise does not compress, so that tables of these sizes lie at byte 1,400 to 1,800 of their files.
    for width in range(58, 76):
        pixels = noise(8, width, 3)
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_deflate")
        assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello, I am a text", "is not a JPEG, PNG, WebP or TIFF picture"),
        (b"", "is not a JPEG, PNG, WebP or TIFF picture"),
        (b"\xff\xd8\xff", "is not a JPEG|cannot be decoded"),
        (b"II*\0\x08\0\0\0\0\0", "is not a JPEG|cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_path(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=words) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)


def test_a_picture_of_another_format_is_refused(tmp_path: Path) -> None:
    sample("RGB").save(tmp_path / "a.jpg", "BMP")
    with pytest.raises(PictureError, match="is not a JPEG, PNG, WebP or TIFF picture"):
        read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_truncated_file_is_refused_and_not_filled_with_grey(
    suffix: str, share: float, noise: Noise, tmp_path: Path
) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(PictureError, match=rf"cut\{suffix} (cannot be decoded|is not a)"):
        read_picture(path)


def test_a_damaged_file_is_refused_or_read_without_a_warning(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    contents: list[bytes] = []
    for name in ("JPEG", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        sample("RGB").save(buffer, name, exif=camera_exif(6).tobytes())
        contents.append(buffer.getvalue())
    complaints: list[str] = []
    for turn in range(400):
        data = bytearray(contents[turn % 4])
        for position in rng.integers(0, min(len(data), 400), 3):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert read_picture(path).pixels.shape[2] == 3
        except PictureError as error:
            complaints.append(str(error))
    assert 0 < len(complaints) < 400
    assert all(str(path) in complaint for complaint in complaints)


@pytest.mark.parametrize("make", [Path.mkdir, str])
def test_a_folder_or_a_missing_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(PictureError, match=r"a\.png cannot be decoded: (Is a directory|No such file)"):
        read_picture(path)


def test_a_picture_that_is_too_large_is_refused_and_a_large_one_read(
    noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(30, 50, 3)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert np.array_equal(read_picture(tmp_path / "large.png").pixels, pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match=r"large\.png is too large"):
        read_picture(tmp_path / "large.png")


@pytest.mark.parametrize("name", ["a.gif", "a", "a.jpg.txt"])
def test_a_name_of_no_known_format_is_refused(name: str, noise: Noise, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"must end in \.jpeg, \.jpg, \.png"):
        write_picture(tmp_path / name, picture(noise(4, 4, 3)))
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_is_refused(noise: Noise, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PictureError, match=r"cannot write .*a\.png: "):
        write_picture(tmp_path / "file" / "a.png", picture(noise(4, 4, 3)))


def test_folders_are_made_as_needed(noise: Noise, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.png"
    write_picture(path, picture(noise(4, 4, 3)))
    assert read_picture(path).pixels.shape == (4, 4, 3)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(b"old")
    too_wide_for_webp = np.zeros((1, 16384, 3), np.uint8)
    with pytest.raises(PictureError, match=r"cannot write .*a\.webp"):
        write_picture(path, picture(too_wide_for_webp))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
