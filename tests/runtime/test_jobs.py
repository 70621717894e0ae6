"""Plans: where results go, what they are called, what is never overwritten, and which files are found."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from msan_runtime.errors import PictureError
from msan_runtime.jobs import Job, plan_jobs
from msan_runtime.naming import Naming
from msan_runtime.walk import file_id, find_files

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has other rules for names and links")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures, one of them deeper, and a file that is none."""
    folder = tmp_path / "pictures"
    for name in ("a.png", "b.JPG", "trip/day 1/c.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 5), (10, 20, 30)).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Tells planning that the output folder takes ``a`` and ``A`` for one file, or for two."""

    def pretend(ignores_case: bool) -> None:
        monkeypatch.setattr("msan_runtime.jobs._ignores_case", lambda _: ignores_case)

    return pretend


def names(jobs: Sequence[Job], folder: Path) -> set[str]:
    return {job.target.relative_to(folder).as_posix() for job in jobs}


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def test_a_folder_is_mirrored(pictures: Path, tmp_path: Path) -> None:
    plan = plan_jobs([pictures], tmp_path / "out")
    assert names(plan, tmp_path / "out") == {"a.png", "b.JPG", "trip/day 1/c.webp"}
    for job in plan:
        assert job.source.relative_to(pictures) == job.target.relative_to(tmp_path / "out")
    assert plan.many
    assert plan.folder == tmp_path / "out"
    assert plan.target_folders() == {tmp_path / "out", tmp_path / "out" / "trip" / "day 1"}


def test_a_plan_is_a_sequence(pictures: Path, tmp_path: Path) -> None:
    plan = plan_jobs([pictures], tmp_path / "out")
    assert len(plan) == 3
    assert plan[:2] == [plan[0], plan[1]]
    assert list(plan) == [plan[number] for number in range(3)]


def test_one_file_goes_to_the_file_named(pictures: Path, tmp_path: Path) -> None:
    source, target = pictures / "a.png", tmp_path / "sharp.webp"
    plan = plan_jobs([source], target)
    assert list(plan) == [Job(source=source, target=target)]
    assert plan.folder is None
    assert not plan.many


@pytest.mark.parametrize("output", ["out", "out.v2", "photos.2024"])
def test_one_file_goes_into_a_folder_that_need_not_exist(output: str, pictures: Path, tmp_path: Path) -> None:
    plan = plan_jobs([pictures / "a.png"], tmp_path / output)
    assert [job.target for job in plan] == [tmp_path / output / "a.png"]
    assert not plan.many


def test_a_folder_that_is_called_like_a_picture_is_a_folder(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    assert plan_jobs([pictures / "a.png"], tmp_path / "out.png")[0].target == tmp_path / "out.png" / "a.png"


@pytest.mark.parametrize("name", ["out.gif", "out.HEIC"])
def test_an_output_in_a_format_that_is_not_written_is_refused(name: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"the name of a picture must end in"):
        plan_jobs([pictures / "a.png"], tmp_path / name)


@pytest.mark.parametrize("output", ["out.png", "out.mp4"])
def test_several_files_do_not_go_into_one(output: str, pictures: Path, tmp_path: Path) -> None:
    for inputs in ([pictures], [pictures / "a.png", pictures / "b.JPG"]):
        with pytest.raises(PictureError, match=r"is one file, but the input is several\. Give a folder as -o"):
            plan_jobs(inputs, tmp_path / output)


def test_files_and_folders_go_together(pictures: Path, tmp_path: Path) -> None:
    jobs = plan_jobs([pictures / "a.png", pictures / "trip"], tmp_path / "out")
    assert names(jobs, tmp_path / "out") == {"a.png", "day 1/c.webp"}


def test_an_input_given_twice_is_done_once(pictures: Path, tmp_path: Path) -> None:
    plan = plan_jobs([pictures / "a.png", pictures, pictures / "a.png"], tmp_path / "out")
    assert sorted(job.source.name for job in plan) == ["a.png", "b.JPG", "c.webp"]


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    for output in ("out", "out.png"):
        with pytest.raises(PictureError, match=r"no file or folder .*missing"):
            plan_jobs([tmp_path / "missing"], tmp_path / output)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder.png").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(PictureError, match=r"no JPEG, PNG, WebP or TIFF picture in .*empty"):
        plan_jobs([tmp_path / "empty"], tmp_path / "out")


def test_videos_are_found_like_pictures(pictures: Path, tmp_path: Path) -> None:
    touch(pictures, "clip.MP4", "trip/ride.mov")
    plan = plan_jobs([pictures], tmp_path / "out", compare=True)
    videos = [job for job in plan if job.is_video]
    assert names(videos, tmp_path / "out") == {"clip.MP4", "trip/ride.mov"}
    assert [job.results for job in videos] == [(job.target,) for job in videos]


@pytest.mark.parametrize(("source", "output"), [("a.png", "out.mp4"), ("clip.mp4", "out.png")])
def test_a_picture_becomes_no_video(source: str, output: str, pictures: Path, tmp_path: Path) -> None:
    touch(pictures, "clip.mp4")
    with pytest.raises(PictureError, match="a video stays a video"):
        plan_jobs([pictures / source], tmp_path / output)


# Names


def test_names_follow_the_template_and_the_format(pictures: Path, tmp_path: Path) -> None:
    touch(pictures, "clip.mp4")
    naming = Naming(template="{stem}-{model}{suffix}", picture_format="jpg", model="msan-s")
    plan = plan_jobs([pictures], tmp_path / "out", naming=naming)
    assert names(plan, tmp_path / "out") == {
        "a-msan-s.jpg",
        "b-msan-s.jpg",
        "clip-msan-s.mp4",
        "trip/day 1/c-msan-s.jpg",
    }


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{stem}-{when}{suffix}", r"has a field \{when\}\. There are: \{stem\}, \{suffix\}, \{model\}"),
        ("{stem}-{}{suffix}", r"has a field \{\}"),
        ("{stem.parent}{suffix}", r"has a field \{stem\.parent\}"),
        ("{stem[0]}{suffix}", r"has a field \{stem\[0\]\}"),
        ("sharp{suffix}", r"must hold \{stem\} and end in \{suffix\}"),
        ("{stem}.png", r"must hold \{stem\} and end in \{suffix\}"),
        ("../{stem}{suffix}", r"has '/' in it"),
        ("sharp\\{stem}{suffix}", r"has '\\\\' in it"),
        ("{stem}\n{suffix}", r"has '\\n' in it"),
        ("{stem:>9}{suffix}", "fields are plain"),
        ("{stem!r}{suffix}", "fields are plain"),
        ("{stem{suffix}", "--name"),
        ("{stem}}{suffix}", "cannot be read"),
    ],
)
def test_a_template_that_makes_no_names_is_refused(template: str, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        Naming(template=template)


def test_the_name_of_a_model_must_fit_into_a_name() -> None:
    assert Naming(model="a/b").result_of("x.png") == "x.png"
    with pytest.raises(PictureError, match=r"the model's name 'a/b' has '/' in it"):
        Naming(template="{stem}-{model}{suffix}", model="a/b")


@given(stem=st.text(st.characters(exclude_characters="/\0.", exclude_categories=["Cs"]), min_size=1))
def test_braces_in_a_files_own_name_are_just_letters(stem: str) -> None:
    name = Naming(template="{{{stem}}}{suffix}", model="{stem}").result_of(f"{stem}.png")
    assert name == "{" + stem + "}.png"


def test_a_name_of_ones_own_and_a_template_exclude_each_other(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="--name and --format are for results in a folder"):
        plan_jobs([pictures / "a.png"], tmp_path / "b.png", naming=Naming(picture_format="png"))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(PictureError, match=r"no format 'gif'\. There are: png, jpg, webp, tif"):
        Naming(picture_format="gif")


# Clashes


def test_two_results_of_one_name_are_refused(pictures: Path, tmp_path: Path) -> None:
    other = touch(tmp_path, "other/a.png") / "other" / "a.png"
    with pytest.raises(PictureError, match=r"a\.png and .*a\.png would both be written to .*out.a\.png"):
        plan_jobs([pictures / "a.png", other], tmp_path / "out")


def test_two_pictures_that_one_format_gives_one_name_are_refused(pictures: Path, tmp_path: Path) -> None:
    touch(pictures, "a.tif")
    assert len(plan_jobs([pictures], tmp_path / "out")) == 4
    with pytest.raises(PictureError, match=r"a\.png and .*a\.tif would both be written to .*a\.jpg"):
        plan_jobs([pictures], tmp_path / "out", naming=Naming(picture_format="jpg"))


@POSIX
def test_results_that_meet_through_a_link_in_the_output_are_refused(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "one/a.png", "two/a.png")
    (tmp_path / "out" / "one").mkdir(parents=True)
    (tmp_path / "out" / "two").symlink_to("one")
    with pytest.raises(PictureError, match="would both be written"):
        plan_jobs([source], tmp_path / "out")


@POSIX
@pytest.mark.parametrize("pair", [("a.png", "A.PNG"), ("straße.png", "STRASSE.png"), ("\u00e9.png", "e\u0301.png")])
def test_names_that_differ_in_case_clash_where_the_folder_ignores_it(
    pair: tuple[str, str], tmp_path: Path, cramped: Callable[[bool], None]
) -> None:
    source = touch(tmp_path / "in", *pair)
    cramped(False)
    assert names(plan_jobs([source], tmp_path / "out"), tmp_path / "out") == set(pair)
    cramped(True)
    with pytest.raises(PictureError, match="would both be written"):
        plan_jobs([source], tmp_path / "out")


@POSIX
def test_whether_a_folder_ignores_case_is_tried_without_a_trace(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "a.png", "A.png")
    (tmp_path / "out").mkdir()
    assert len(plan_jobs([source], tmp_path / "out")) == 2
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("inputs", [["."], ["a.png"], ["a.png", "b.JPG"]])
def test_a_result_never_replaces_an_input(inputs: list[str], pictures: Path) -> None:
    with pytest.raises(PictureError, match=r"would replace the input .*Choose another -o"):
        plan_jobs([pictures / name for name in inputs], pictures)


@POSIX
def test_a_result_never_replaces_an_input_through_a_link(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pictures)
    with pytest.raises(PictureError, match="would replace the input"):
        plan_jobs([pictures / "a.png"], tmp_path / "link")
    with pytest.raises(PictureError, match="would replace the input"):
        plan_jobs([pictures / "a.png"], tmp_path / "link" / "a.png")


@POSIX
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_result_that_is_another_name_of_an_input_is_refused(kind: str, pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "b.png"
    target.parent.mkdir()
    if kind == "symbolic":
        target.symlink_to(pictures / "b.JPG")
    else:
        target.hardlink_to(pictures / "b.JPG")
    with pytest.raises(PictureError, match=r"the result of .*b\.JPG would replace the input .*b\.png"):
        plan_jobs([pictures], tmp_path / "out", naming=Naming(picture_format="png"))


@pytest.mark.parametrize("output", ["sharp", "trip/sharp", "trip/day 1/../sharp"])
def test_earlier_results_inside_the_input_folder_do_not_become_inputs(output: str, pictures: Path) -> None:
    first = plan_jobs([pictures], pictures / output, compare=True)
    for job in first:
        for result in job.results:
            touch(result.parent, result.name)
    assert list(plan_jobs([pictures], pictures / output, compare=True)) == list(first)


def test_earlier_results_beside_the_inputs_do_not_become_inputs(pictures: Path) -> None:
    naming = Naming(template="{stem}-sharp{suffix}")
    first = list(plan_jobs([pictures], pictures, naming=naming))
    for job in first:
        touch(job.target.parent, job.target.name)
    assert len(plan_jobs([pictures], pictures, naming=Naming(template="{stem}-2{suffix}"))) == 6
    again = plan_jobs([pictures], pictures, naming=naming, earlier=[job.target for job in first])
    assert list(again) == first


def test_an_input_inside_the_output_folder_is_still_an_input(pictures: Path) -> None:
    jobs = plan_jobs([pictures / "trip"], pictures)
    assert names(jobs, pictures) == {"day 1/c.webp"}


# Comparisons


def test_comparisons_are_called_after_the_result(pictures: Path, tmp_path: Path) -> None:
    plan = plan_jobs([pictures], tmp_path, compare=True)
    assert [job.comparison for job in plan] == [
        tmp_path / "a.compare.png",
        tmp_path / "b.compare.png",
        tmp_path / "trip" / "day 1" / "c.compare.png",
    ]
    assert plan_jobs([pictures / "a.png"], tmp_path / "x.jpg", compare=True)[0].comparison == tmp_path / "x.compare.png"


def test_comparisons_of_two_pictures_never_share_a_file(pictures: Path, tmp_path: Path) -> None:
    touch(pictures, "a.tif", "b.compare.png")
    plan = plan_jobs([pictures], tmp_path, compare=True)
    assert {job.source.name: job.comparison.name for job in plan if job.comparison is not None} == {
        "a.png": "a.png.compare.png",
        "a.tif": "a.tif.compare.png",
        "b.JPG": "b.JPG.compare.png",
        "b.compare.png": "b.compare.compare.png",
        "c.webp": "c.compare.png",
    }


def test_a_comparison_never_replaces_an_input(pictures: Path, tmp_path: Path) -> None:
    touch(tmp_path, "a.compare.png")
    with pytest.raises(PictureError, match="would replace the input"):
        plan_jobs([pictures / "a.png", tmp_path / "a.compare.png"], tmp_path, compare=True)


# What is found


@POSIX
def test_links_that_lead_in_a_circle_end(pictures: Path, tmp_path: Path) -> None:
    (pictures / "trip" / "up").symlink_to(pictures)
    (pictures / "trip" / "self").symlink_to(".")
    (pictures / "again").symlink_to("trip")
    assert names(plan_jobs([pictures], tmp_path / "out"), tmp_path / "out") == {"a.png", "b.JPG", "trip/day 1/c.webp"}


@POSIX
def test_links_that_lead_nowhere_hide_no_files(pictures: Path, tmp_path: Path) -> None:
    for name in ("self", "self.png"):
        (pictures / name).symlink_to(name)
    for name in ("through", "through.png"):
        (pictures / name).symlink_to("a.png/inside")
    plan = plan_jobs([pictures], tmp_path / "out")
    assert names(plan, tmp_path / "out") >= {"a.png", "b.JPG", "trip/day 1/c.webp"}
    problems = sorted(job.problem for job in plan if job.problem is not None)
    assert [problem.rpartition(": ")[0] for problem in problems] == [
        f"cannot follow {pictures / 'self.png'}",
        f"cannot follow {pictures / 'through.png'}",
    ]


@POSIX
def test_a_linked_folder_from_elsewhere_is_searched_once(pictures: Path, tmp_path: Path) -> None:
    album = touch(tmp_path / "album", "x.png", "deep/y.png")
    (album / "deep" / "back").symlink_to(pictures)
    for link in ("first", "second"):
        (pictures / link).symlink_to(album)
    found = find_files(pictures, {".png"})
    assert len(found.files) == 3
    assert {Path(path).name for path in found.files} == {"a.png", "x.png", "y.png"}


@POSIX
def test_a_real_folder_wins_over_a_link_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "z/x.png")
    (tmp_path / "a").symlink_to("z")
    assert find_files(tmp_path, {".png"}).files == [os.path.join("z", "x.png")]  # noqa: PTH118


@POSIX
def test_a_link_to_a_file_is_a_file(pictures: Path, tmp_path: Path) -> None:
    (pictures / "best.png").symlink_to("a.png")
    assert "best.png" in names(plan_jobs([pictures], tmp_path / "out"), tmp_path / "out")


@POSIX
def test_what_cannot_be_read_is_said(pictures: Path, tmp_path: Path) -> None:
    (pictures / "gone.png").symlink_to("nowhere")
    os.mkfifo(pictures / "pipe.jpg")
    plan = plan_jobs([pictures], tmp_path / "out")
    problems = sorted(job.problem for job in plan if job.problem is not None)
    assert problems == [f"{pictures / 'gone.png'} is a link to nothing", f"{pictures / 'pipe.jpg'} is not a file"]
    assert len(plan) == 5


def test_files_left_out_are_told_by_what_they_are(pictures: Path) -> None:
    identity = file_id(pictures / "a.png")
    assert identity is not None
    assert find_files(pictures, {".png"}, without=[identity]).files == []
    assert file_id(pictures / "missing") is None
