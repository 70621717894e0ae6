"""CMYK pictures: through their profile to sRGB, against a profile made by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msan_runtime.image import read_picture, write_picture


def white_cyan_profile() -> bytes:
    """A profile of a press whose cyan, magenta and yellow are white, and whose black is black (ICC.1, lut8Type)."""
    corners = b"".join(bytes([0 if corner & 1 else 255, 128, 128]) for corner in range(16))  # K varies fastest
    identity = b"".join(struct.pack(">i", 65536 * (row == column)) for row in range(3) for column in range(3))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + corners + 3 * ramp
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    tags = [(b"A2B0", table), (b"wtpt", white)]
    body, index = b"", struct.pack(">I", len(tags))
    for name, data in tags:
        index += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", 128 + len(index) + len(body), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp")
    header = header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + index + body


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_inks_become_srgb_through_the_profile_of_the_file(suffix: str, tmp_path: Path) -> None:
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:, :16] = (255, 0, 0, 0)
    inks[:, 32:] = (0, 0, 0, 255)
    Image.fromarray(inks, "CMYK").save(tmp_path / f"a{suffix}", icc_profile=white_cyan_profile())
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.pixels[8, [8, 24, 40]].tolist() == pytest.approx(np.array([[255] * 3, [255] * 3, [0] * 3]), abs=2)
    write_picture(tmp_path / "b.png", read)
    with Image.open(tmp_path / "b.png") as image:
        profile = image.info["icc_profile"]
        assert profile[16:20] == b"RGB "
        assert "sRGB".encode("utf-16-be") in profile
    assert read_picture(tmp_path / f"a{suffix}").icc == read.icc


def test_inks_without_a_profile_become_rgb_by_the_plain_formula(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (255, 0, 0, 51)).save(tmp_path / "a.tif")
    read = read_picture(tmp_path / "a.tif")
    assert read.pixels[0, 0].tolist() == [0, 204, 204]
    assert read.icc is None


def test_a_profile_that_fits_no_inks_is_left_out_aloud(
    icc: bytes, sample: Callable[[str], Image.Image], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    sample("CMYK").save(tmp_path / "a.tif", icc_profile=icc)
    assert read_picture(tmp_path / "a.tif").icc is None
    assert "the CMYK profile cannot be used" in caplog.text
