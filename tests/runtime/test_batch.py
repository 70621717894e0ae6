"""Many pictures: where results go, what is never overwritten, and what becomes of bad files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from msan_runtime.backends.base import TileLimits
from msan_runtime.batch import Job, deblur_files, plan_jobs
from msan_runtime.compare import side_by_side
from msan_runtime.contract import PictureArray
from msan_runtime.deblur import Deblurrer
from msan_runtime.errors import PictureError
from msan_runtime.image import read_picture

Noise = Callable[..., PictureArray]


@pytest.fixture
def inverting(make_deblurrer: Callable[..., Deblurrer]) -> Deblurrer:
    return make_deblurrer(lambda tiles: 255 - tiles, TileLimits(area_px=4096))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures, one of them deeper, and a file that is none."""
    folder = tmp_path / "pictures"
    for name in ("a.png", "b.JPG", "trip/day 1/c.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 5), (10, 20, 30)).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


def names(jobs: list[Job], folder: Path) -> set[str]:
    return {job.target.relative_to(folder).as_posix() for job in jobs}


def test_a_folder_is_mirrored(pictures: Path, tmp_path: Path) -> None:
    jobs = plan_jobs([pictures], tmp_path / "out")
    assert names(jobs, tmp_path / "out") == {"a.png", "b.JPG", "trip/day 1/c.webp"}
    for job in jobs:
        assert job.source.relative_to(pictures) == job.target.relative_to(tmp_path / "out")


def test_one_file_goes_to_the_file_named(pictures: Path, tmp_path: Path) -> None:
    source, target = pictures / "a.png", tmp_path / "sharp.webp"
    assert plan_jobs([source], target) == [Job(source=source, target=target)]


@pytest.mark.parametrize("output", ["out", "out.v2", "photos.2024"])
def test_one_file_goes_into_a_folder_that_need_not_exist(output: str, pictures: Path, tmp_path: Path) -> None:
    assert [job.target for job in plan_jobs([pictures / "a.png"], tmp_path / output)] == [tmp_path / output / "a.png"]


def test_a_folder_that_is_called_like_a_picture_is_a_folder(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    assert plan_jobs([pictures / "a.png"], tmp_path / "out.png")[0].target == tmp_path / "out.png" / "a.png"


@pytest.mark.parametrize("name", ["out.gif", "out.HEIC"])
def test_an_output_in_a_format_that_is_not_written_is_refused(name: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"the name of a picture must end in"):
        plan_jobs([pictures / "a.png"], tmp_path / name)


def test_files_and_folders_go_together(pictures: Path, tmp_path: Path) -> None:
    jobs = plan_jobs([pictures / "a.png", pictures / "trip"], tmp_path / "out")
    assert names(jobs, tmp_path / "out") == {"a.png", "day 1/c.webp"}


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"no file or folder .*missing"):
        plan_jobs([tmp_path / "missing"], tmp_path / "out")


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder.png").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(PictureError, match=r"no JPEG, PNG, WebP or TIFF picture in .*empty"):
        plan_jobs([tmp_path / "empty"], tmp_path / "out")


def test_two_results_of_one_name_are_refused(pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "a.png"
    other.parent.mkdir()
    other.write_bytes((pictures / "a.png").read_bytes())
    with pytest.raises(PictureError, match=r"a\.png and .*a\.png would both be written to .*out.a\.png"):
        plan_jobs([pictures / "a.png", other], tmp_path / "out")


@pytest.mark.parametrize("inputs", [["."], ["a.png"], ["a.png", "b.JPG"]])
def test_a_result_never_replaces_an_input(inputs: list[str], pictures: Path) -> None:
    with pytest.raises(PictureError, match=r"would replace the input .*Choose another -o"):
        plan_jobs([pictures / name for name in inputs], pictures)


def test_a_result_never_replaces_an_input_through_a_link(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pictures)
    with pytest.raises(PictureError, match="would replace the input"):
        plan_jobs([pictures / "a.png"], tmp_path / "link")
    with pytest.raises(PictureError, match="would replace the input"):
        plan_jobs([pictures / "a.png"], tmp_path / "link" / "a.png")


@pytest.mark.parametrize("output", ["sharp", "trip/sharp", "trip/day 1/../sharp"])
def test_earlier_results_inside_the_input_folder_do_not_become_inputs(
    output: str, pictures: Path, inverting: Deblurrer
) -> None:
    first = plan_jobs([pictures], pictures / output)
    assert all(outcome.error is None for outcome in deblur_files(inverting, first, compare=True))
    assert plan_jobs([pictures], pictures / output) == first


def test_an_input_inside_the_output_folder_is_still_an_input(pictures: Path) -> None:
    jobs = plan_jobs([pictures / "trip"], pictures)
    assert names(jobs, pictures) == {"day 1/c.webp"}


def test_comparisons_of_two_pictures_never_share_a_file(pictures: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 5)).save(pictures / "a.jpg")
    assert len(plan_jobs([pictures], tmp_path / "out")) == 4
    with pytest.raises(PictureError, match=r"would both be written to .*a\.compare\.png"):
        plan_jobs([pictures], tmp_path / "out", compare=True)


def test_a_comparison_never_replaces_an_input(pictures: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 5)).save(tmp_path / "a.compare.png")
    inputs = [pictures / "a.png", tmp_path / "a.compare.png"]
    with pytest.raises(PictureError, match="would replace the input"):
        plan_jobs(inputs, tmp_path, compare=True)


def test_results_are_what_the_network_gives(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    jobs = plan_jobs([pictures], tmp_path / "out")
    outcomes = list(deblur_files(inverting, jobs))
    assert [outcome.job for outcome in outcomes] == jobs
    assert [outcome.error for outcome in outcomes] == [None] * 3
    for job in jobs:
        assert np.abs(read_picture(job.target).pixels.astype(int) - (245, 235, 225)).max() <= 2


def test_one_bad_file_does_not_stop_the_others(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    (pictures / "aa.jpg").write_text("no picture")
    (pictures / "z.png").write_bytes((pictures / "a.png").read_bytes()[:-30])
    outcomes = list(deblur_files(inverting, plan_jobs([pictures], tmp_path / "out")))
    errors = {outcome.job.source.name: outcome.error for outcome in outcomes if outcome.error is not None}
    assert set(errors) == {"aa.jpg", "z.png"}
    assert "aa.jpg is not a JPEG" in errors["aa.jpg"]
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"a.png", "b.JPG", "c.webp"}


def test_a_result_that_cannot_be_written_is_an_outcome(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    Image.new("RGBA", (9, 5)).save(pictures / "a.png")
    jobs = [Job(source=pictures / "a.png", target=tmp_path / "a.jpg"), Job(source=pictures / "b.JPG", target=tmp_path)]
    errors = [outcome.error or "" for outcome in deblur_files(inverting, jobs)]
    assert "JPEG has no transparency" in errors[0]
    assert "cannot write" in errors[1]


def test_outcomes_come_one_by_one(pictures: Path, tmp_path: Path, inverting: Deblurrer) -> None:
    jobs = plan_jobs([pictures], tmp_path / "out")
    outcomes = deblur_files(inverting, jobs)
    assert next(outcomes).seconds > 0
    assert [job.target.exists() for job in jobs] == [True, False, False]


def test_alpha_and_greyness_go_through(tmp_path: Path, noise: Noise, inverting: Deblurrer) -> None:
    pixels = noise(6, 7, 2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "LA"
    list(deblur_files(inverting, [Job(source=tmp_path / "a.png", target=tmp_path / "b.png")]))
    with Image.open(tmp_path / "b.png") as image:
        assert image.mode == "LA"
        assert np.array_equal(np.array(image), np.stack([255 - pixels[:, :, 0], pixels[:, :, 1]], axis=2))


def test_a_comparison_is_written_beside_the_result(tmp_path: Path, noise: Noise, inverting: Deblurrer) -> None:
    pixels = noise(40, 60, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    jobs = plan_jobs([tmp_path / "a.png"], tmp_path / "out", compare=True)
    list(deblur_files(inverting, jobs, compare=True))
    with Image.open(tmp_path / "out" / "a.compare.png") as sheet:
        assert sheet.info["icc_profile"] == profile
        assert np.array_equal(np.array(sheet)[-40:], side_by_side(pixels, 255 - pixels)[-40:])


def test_the_comparison_of_a_grey_picture_has_no_grey_profile(tmp_path: Path, inverting: Deblurrer) -> None:
    Image.new("L", (20, 20), 7).save(tmp_path / "a.png", icc_profile=b"a grey profile")
    jobs = plan_jobs([tmp_path / "a.png"], tmp_path / "out", compare=True)
    assert [outcome.error for outcome in deblur_files(inverting, jobs, compare=True)] == [None]
    with Image.open(tmp_path / "out" / "a.png") as result, Image.open(tmp_path / "out" / "a.compare.png") as sheet:
        assert result.info["icc_profile"] == b"a grey profile"
        assert "icc_profile" not in sheet.info


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (100, 300), (1, 4000)])
def test_a_comparison_shows_both_pictures_untouched_under_labels(height: int, width: int, noise: Noise) -> None:
    before, after = noise(height, width, 3), 255 - noise(height, width, 3)
    sheet = side_by_side(before, after)
    assert np.array_equal(sheet[-height:, :width], before)
    assert np.array_equal(sheet[-height:, -width:], after)
    labels = sheet[:-height]
    assert labels.min() < 100
    assert labels.max() == 255
