"""``msan blur``: the pictures that it writes, and mistakes in a line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image, ImageCms
from typer.testing import CliRunner

from msan.commands.blur import blur
from msan.degradation.blur import BlurError, BlurSpec
from msan.degradation.blursheet import contact_sheet
from msan.degradation.degrade import margin_px
from msan_runtime.contract import PictureArray
from msan_runtime.errors import MsanError, PictureError

MSAN = Path(sys.executable).with_name("msan")

STILL = ("--length", "0", "0", "--roll", "0", "--zoom", "0", "--noise", "0", "--moving-share", "0", "--jpeg-share", "0")


def run(*arguments: str | Path) -> str:
    """What the command prints; what it raises is raised."""
    app = typer.Typer()
    app.command()(blur)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def scene(height: int, width: int) -> PictureArray:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def pixels(path: str | Path) -> PictureArray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def sharp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of 150×130, in another folder than the current one."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = tmp_path / "scene.png"
    Image.fromarray(scene(150, 130)).save(path)
    return path


def test_a_blurred_picture_is_written_to_the_current_folder(sharp: Path) -> None:
    printed = run(sharp, "--length", "6", "6")
    assert printed.startswith("scene-blurred.png: path 6.0 px")
    assert [path.name for path in Path().iterdir()] == ["scene-blurred.png"]
    blurred = pixels("scene-blurred.png").astype(float)
    assert blurred.shape == (150, 130, 3)
    assert 3 < np.abs(blurred - scene(150, 130)).mean() < 60


def test_the_seed_decides(sharp: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(sharp, "-o", f"{name}.png", "--seed", str(seed))
    a, b, c = (pixels(f"{name}.png") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_numbers_of_zero_leave_the_picture_as_it_is(sharp: Path) -> None:
    run(sharp, "-o", "same.png", *STILL)
    np.testing.assert_array_equal(pixels("same.png"), scene(150, 130))


def test_no_seed_leaves_the_picture_unblurred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training keeps some pictures sharp; the command never does."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene(8, 8)).save("small.png")
    printed = [run("small.png", "--length", "9", "9", "--seed", str(seed)) for seed in range(40)]
    assert all("path 9.0 px" in line for line in printed)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--length", "7", "7"), "path 7.0 px"),
        (("--noise", "30"), "noise"),
        (("--moving-share", "1"), "moving, path"),
        (("--jpeg-share", "1", "--jpeg-quality", "33", "33"), "JPEG 33 4:"),
        (("--length", "9", "9", "--roll", "60"), "roll"),
        (("--length", "9", "9", "--zoom", "60"), "zoom"),
        (("--length", "9", "9", "--wander", "40"), "path 9.0 px"),
    ],
)
def test_each_number_has_its_effect_and_is_told(sharp: Path, option: tuple[str, ...], words: str) -> None:
    base = (*STILL, "--length", "9", "9") if option[0] in ("--moving-share", "--length") else STILL
    before = run(sharp, "-o", "before.png", *base)
    after = run(sharp, "-o", "after.png", *base, *option)
    assert words in after
    assert before.partition(":")[2] != after.partition(":")[2] or option[-2] == "--wander"
    assert not np.array_equal(pixels("before.png"), pixels("after.png"))


def test_long_paths_leave_no_ghosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thin line becomes a smear without gaps: a path of 120 px has more than the usual 25 instants."""
    monkeypatch.chdir(tmp_path)
    line = np.zeros((40, 400, 3), np.uint8)
    line[:, 199:202] = 255
    Image.fromarray(line).save("line.png")
    options = (*STILL, "--length", "120", "120", "--wander", "0", "--seed", "25")
    run("line.png", "-o", "smear.png", *options)
    smear = pixels("smear.png")[20, :, 0].astype(int)
    lit = np.flatnonzero(smear > 5)
    assert len(lit) > 110
    assert (smear[lit[0] : lit[-1]] > 5).all()


def test_what_the_file_carried_is_kept(sharp: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    alpha = Image.fromarray(scene(150, 130)[:, :, 0])
    with_alpha = Image.fromarray(pixels(sharp))
    with_alpha.putalpha(alpha)
    with_alpha.save("rich.png", icc_profile=profile, exif=exif)
    run("rich.png", "-o", "out/blurred.png")
    with Image.open("out/blurred.png") as written:
        assert written.mode == "RGBA"
        np.testing.assert_array_equal(np.array(written.getchannel("A")), np.array(alpha))
        assert written.info["icc_profile"] == profile
        assert written.getexif()[0x010F] == "a camera"


def test_a_contact_sheet_shows_the_sharp_centre_and_eleven_blurs(sharp: Path) -> None:
    printed = run(sharp, "--show", "--length", "1", "10", "--roll", "1", "--zoom", "1")
    assert printed.strip() == "scene-blur-sheet.png"
    assert [path.name for path in Path().iterdir()] == ["scene-blur-sheet.png"]
    height, width, channels = pixels("scene-blur-sheet.png").shape
    assert 800 < height < 1200
    assert 900 < width < 1400
    assert channels == 3


def test_blur_grows_along_the_sheet_and_follows_from_the_seed() -> None:
    spec = BlurSpec(length_px=(1.0, 16.0), noise_levels=0, instants=9, moving_share=0, jpeg_share=0)
    margin, side = margin_px(spec), 132
    shape = (side + 2 * margin, side + 2 * margin + 1, 3)
    picture = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    sheet = contact_sheet(picture, spec, 5)
    np.testing.assert_array_equal(contact_sheet(picture, spec, 5), sheet)
    assert not np.array_equal(contact_sheet(picture, spec, 6), sheet)
    # Each pixel of the crop is 2×2 of a tile; the lower right corner holds the path.
    corners = [(10 + row * 324, 10 + column * 274) for row in range(3) for column in range(4)]
    tiles = [sheet[top : top + 180 : 2, left : left + 180 : 2] for top, left in corners]
    np.testing.assert_array_equal(tiles[0], picture[margin:, margin:][:90, :90])
    contrasts = [float(tile.astype(float).std()) for tile in tiles]
    assert contrasts[0] > contrasts[1] > contrasts[4] > contrasts[11]
    assert contrasts[11] < contrasts[0] / 2


def test_shares_of_zero_keep_moving_regions_and_jpeg_off_the_sheet() -> None:
    picture = scene(100, 100)
    quiet = BlurSpec(length_px=(1.0, 4.0), roll_px=1, zoom_px=1, instants=5, moving_share=0, jpeg_share=0)
    still, moving, compressed = (
        contact_sheet(picture, spec, 1)
        for spec in (quiet, replace(quiet, moving_share=0.1), replace(quiet, jpeg_share=0.1))
    )
    # The second version's tile: outlines of its regions and, in the lower right corner, their paths.
    orange, white = (255, 176, 0), (255, 255, 255)
    tiles = [sheet[10 : 10 + 264, 10 + 2 * 274 :][:, :264] for sheet in (still, moving, compressed)]
    outlines = [(tile == orange).all(2)[:188].sum() for tile in tiles]
    paths = [[(tile == colour).all(2)[188:, 188:].sum() for tile in tiles] for colour in (orange, white)]
    assert outlines[0] == outlines[2] == paths[0][0] == paths[0][2] == 0
    assert outlines[1] > 50
    assert paths[0][1] > 20
    assert min(paths[1]) > 10
    assert not np.array_equal(still, compressed)


def test_a_small_picture_is_enlarged_on_the_sheet_and_a_tiny_one_refused(sharp: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.fromarray(pixels(sharp)[:90, :70]).save(small)
    with pytest.raises(BlurError, match=r"90×70 px; a sheet of this blur needs 110 px a side"):
        run(small, "--show")
    assert not list(Path().iterdir())
    run(small, "--show", "--length", "0", "1", "--roll", "0", "--zoom", "0", "-o", "sheet.png")
    assert pixels("sheet.png").shape[1] > 900
    run(small, "-o", "blurred.png")
    assert pixels("blurred.png").shape == (90, 70, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 200)])
def test_any_size_can_be_blurred(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene(*size)[: size[0], : size[1]]).save("thin.png")
    run("thin.png", "--moving-share", "1", "--jpeg-share", "1")
    assert pixels("thin-blurred.png").shape == (*size, 3)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (("--length", "9", "3"), BlurError, r"length_px .*\(9.0, 3.0\)"),
        (("--length", "nan", "3"), BlurError, "length_px"),
        (("--noise", "-1"), BlurError, "noise_levels .* not -1"),
        (("--jpeg-quality", "0", "90"), BlurError, r"jpeg_quality .*\(0, 90\)"),
        (("-o", "blurred.gif"), PictureError, r"cannot write blurred\.gif"),
    ],
)
def test_mistakes_are_refused(sharp: Path, options: tuple[str, ...], kind: type[MsanError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        run(sharp, *options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list(Path().iterdir())


def test_a_missing_picture_ends_with_2_and_one_line(tmp_path: Path) -> None:
    finished = subprocess.run([MSAN, "blur", tmp_path / "none.png"], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "none.png" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
