"""The report as a page: what it says, that it needs nothing else, how large it is, and names that hold anything."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from tests.export import reports
from tests.export.pages import Page
from tests.export.reports import HOSTILE, check

from msan_export.acceptance.thresholds import Threshold
from msan_export.acceptance.verdict import ParityReport
from msan_export.report import pictures
from msan_export.report.page import report_html
from msan_export.report.plots import Axis, change_plots, difference_plot, psnr_plot
from msan_export.report.viewer import Size, viewer_of_exhibit

LARGE = Size(side_px=480, viewer_bytes=10_000_000)


@cache
def page_of(make: Callable[[], ParityReport]) -> tuple[str, Page]:
    html = report_html(make())
    return html, Page(html)


def pixels_of(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("make", reports.ALL.values(), ids=reports.ALL.keys())
def test_a_page_is_whole_and_names_no_other_place(make: Callable[[], ParityReport]) -> None:
    html, page = page_of(make)
    assert page.open == []
    assert html.startswith("<!doctype html>")
    places = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")]
    assert all(place and place.startswith(("#", "data:")) for place in places)
    assert not re.search(r"@import|url\(", html)
    assert not [
        1 for _, attributes in page.elements if "style" in attributes or any(k.startswith("on") for k in attributes)
    ]


@pytest.mark.parametrize("make", reports.ALL.values(), ids=reports.ALL.keys())
def test_ids_are_there_once_and_links_lead_to_them(make: Callable[[], ParityReport]) -> None:
    _, page = page_of(make)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes["href"] or "")[1:] for attributes in page.all("a")}
    labelled = {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert targets | labelled <= set(ids)


def test_the_policy_allows_the_style_and_the_script_of_the_page_alone() -> None:
    html, page = page_of(reports.passing)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta) or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    ("make", "title", "headline"),
    [
        (reports.passing, "PASS", "All 37 checks that were run are within their bounds."),
        (reports.failing, "FAIL", "3 of 40 checks failed. 1 was not run."),
        (reports.not_run, "FAIL", "No picture was compared, so nothing is shown to be right. 3 were not run."),
    ],
)
def test_the_verdict_is_on_top_in_words(make: Callable[[], ParityReport], title: str, headline: str) -> None:
    _, page = page_of(make)
    assert page.text.startswith(f"{title}: msan against PyTorch 2.13 float32 on the CPU")
    assert headline in page.text
    assert page.text.index(headline) < page.text.index("Whether every file")


def test_what_failed_and_what_was_not_run_is_told_before_the_sections() -> None:
    top = page_of(reports.failing)[1].text.partition("Whether every file")[0]
    assert "msan.fp16.onnx, hash: 1 of 2 out of bounds; was changed since the bundle was made." in top
    assert "msan.fp16.onnx, uint8: 1 of 4 out of bounds, worst night.png 480×640: 12 > 3 levels, 41.2 < 50 dB." in top
    assert "backend rtx, uint8: no NVIDIA driver." in top
    assert top.index("What failed") < top.index("What was not run")


def test_many_failures_are_counted_not_listed() -> None:
    checks = [check("files", f"{number}.onnx", "hash", passed=False) for number in range(30)]
    page = Page(report_html(ParityReport(settings=reports.settings(), checks=tuple(checks))))
    assert "And 18 more: see the sections below." in page.text.partition("Whether every file")[0]
    assert "29.onnx" in page.text


def test_the_origin_is_told() -> None:
    report = reports.passing()
    text = page_of(reports.passing)[1].text
    for told in (
        report.settings.checkpoint_sha256,
        "ab" * 32,
        *report.settings.provenance.values(),
        "A Processor @ 2.00GHz",
        "torch 2.13.0, onnxruntime 1.31.1",
        "FP16 ≤ 0.02 dB",
    ):
        assert told in text


def test_a_report_inside_a_bundle_does_not_tell_the_hash_of_the_manifest() -> None:
    report = reports.not_run()
    inside = replace(report, settings=replace(report.settings, manifest_sha256=None))
    assert "manifest, SHA-256" in page_of(reports.not_run)[1].text
    assert "manifest, SHA-256" not in Page(report_html(inside)).text


def test_every_check_is_on_the_page_beside_its_bound() -> None:
    report = reports.large(2)
    page = Page(report_html(report))
    figures = [one for one in report.checks if one.psnr_db is not None]
    assert len(figures) == 72
    for one in figures:
        assert f"{one.psnr_db:.1f} ≥ 50 dB" in page.text
    assert page.text.count("picture-01.png 480×640") >= 36


def test_headings_leave_out_no_level() -> None:
    _, page = page_of(reports.paired)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("header", "main", "nav", "footer")] == [1, 1, 1, 1]


def test_pictures_and_controls_have_names() -> None:
    _, page = page_of(reports.failing)
    assert all("alt" in picture for picture in page.all("img"))
    assert all(control.get("aria-label") for control in page.all("input"))
    assert all(page.drawings)
    html, _ = page_of(reports.failing)
    assert html.count("<select") == html.count("</select></label>") > 0


def test_names_are_text_whatever_they_hold() -> None:
    html, page = page_of(reports.hostile)
    assert len(page.all("script")) == 1
    assert not [image for image in page.all("img") if not (image["src"] or "").startswith("data:")]
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", html, re.DOTALL)[0]
    assert HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b") in page.text
    assert html.encode()


def test_hostile_names_in_the_fields_of_the_machine_are_text_too() -> None:
    good = reports.passing()
    settings = reports.settings()
    machine = {**settings.machine, "processor": HOSTILE, "versions": {HOSTILE: HOSTILE}, HOSTILE: 1}
    changed = ParityReport(
        settings=replace(settings, machine=machine, reference=HOSTILE, checkpoint=HOSTILE),
        checks=good.checks,
    )
    assert len(Page(report_html(changed)).all("script")) == 1


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """As hard to compress as a photograph: a smooth field with fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (height // 32 + 1, width // 32 + 1, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.normal(0, 1.5, smooth.shape), 0, 255).astype(np.uint8)


def test_ten_large_pictures_keep_within_the_budget() -> None:
    picture = noise(480, 640, 1)
    worst = tuple(reports.exhibit(f"{number}.png", picture=picture, levels=2) for number in range(10))
    report = ParityReport(settings=reports.settings(), checks=reports.passing().checks, worst=worst)
    for budget, side in ((1_500_000, 120), (300_000, 64)):
        html = report_html(report, budget_bytes=budget, exhibits=10 if budget > 300_000 else 3)
        assert len(html.encode()) <= budget
        assert len(html.encode()) >= 0.5 * budget
        sizes = re.findall(r"(\d+)×(\d+) of 480×640 px, around the pixel that differs most", html)
        assert sizes
        assert all(int(height) >= side for height, _ in sizes)


def test_as_many_pictures_are_shown_as_asked_for() -> None:
    report = reports.failing()
    for count in (0, 2, 9):
        page = Page(report_html(report, exhibits=count))
        assert len([1 for _, attributes in page.elements if "data-viewer" in attributes]) == min(count, 4)
    assert 'id="worst"' not in report_html(report, exhibits=0)


def test_pictures_are_embedded_without_loss() -> None:
    exhibit = reports.exhibit("odd", "odd", levels=9)
    viewer = viewer_of_exhibit(exhibit, 1, LARGE)
    shown = {layer.key: pixels_of(layer.uri) for layer in viewer.layers}
    np.testing.assert_array_equal(shown["input"], exhibit.blurred)
    np.testing.assert_array_equal(shown["reference"], exhibit.expected)
    np.testing.assert_array_equal(shown["converted"], exhibit.given)
    assert viewer.crop_words == "The whole picture, 203×301 px, pixel by pixel."


def test_a_picture_is_cut_around_the_pixel_that_differs_most() -> None:
    expected = noise(300, 500, 2)
    levels = np.zeros((300, 500), np.uint8)
    levels[290, 10] = 7
    crop = pictures.crop_around(levels, 120)
    assert (crop.top, crop.left, crop.height, crop.width) == (180, 0, 120, 120)
    assert crop.worst == (110, 10)
    assert levels[crop.top + crop.worst[0], crop.left + crop.worst[1]] == 7
    np.testing.assert_array_equal(crop.of(expected), expected[180:300, :120])


def test_where_nothing_differs_the_middle_is_shown() -> None:
    crop = pictures.crop_around(np.zeros((301, 203), np.uint8), 101)
    assert (crop.top, crop.left) == (100, 51)


def test_of_equal_differences_the_crowded_ones_are_shown() -> None:
    levels = np.zeros((256, 256), np.uint8)
    levels[0, 0] = 1
    levels[160:176, 160:176] = 1
    assert 160 <= pictures.crop_around(levels, 64).top + 32 <= 176


@pytest.mark.parametrize(
    ("largest", "top"), [(0, 4), (1, 4), (4, 4), (5, 8), (16, 16), (17, 32), (129, 255), (200, 255), (255, 255)]
)
def test_a_scale_holds_the_largest_difference(largest: int, top: int) -> None:
    levels = np.full((2, 2), largest, np.uint8)
    assert pictures.scale_top(levels) == top
    lightness = pictures.heat_map(levels, top).astype(int).sum()
    assert (lightness == 0) == (largest == 0)


def test_colours_grow_lighter_step_by_step_and_start_black() -> None:
    colours = pictures.colours().astype(float) / 255
    assert colours[0].tolist() == [0, 0, 0]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[1] > 0.01
    assert luminance[-1] > 0.85


def test_a_shrunk_map_loses_no_difference() -> None:
    levels = np.zeros((1001, 37), np.uint8)
    levels[1000, 36] = 9
    small, factor = pictures.pooled(levels, 100)
    assert factor == 11
    assert small.shape == (91, 4)
    assert small[-1, -1] == 9
    assert small.sum() == 9


def test_a_heat_map_says_its_scale_and_the_bound() -> None:
    heat = viewer_of_exhibit(reports.exhibit("square"), 1, LARGE).heat
    assert (heat.top, heat.bound) == (4, 75.0)
    assert heat.outline is None
    far = viewer_of_exhibit(
        reports.exhibit("square", levels=40, share=0.2), 1, Size(side_px=100, viewer_bytes=10**7)
    ).heat
    assert far.top == 64
    assert far.factor == 4
    assert far.outline is not None
    assert (heat.height, heat.width) == (320, 320)


def test_a_bound_on_pictures_before_rounding_is_drawn_in_levels() -> None:
    exhibit = replace(reports.exhibit("square"), threshold=Threshold(max_difference=2 / 255, psnr_db=50, peak=1))
    assert viewer_of_exhibit(exhibit, 1, LARGE).heat.bound == 50.0


def test_a_bound_beyond_the_scale_is_not_drawn() -> None:
    exhibit = reports.exhibit("square")
    loose = replace(exhibit, threshold=reports.BOUNDS.quantized)
    assert viewer_of_exhibit(loose, 1, LARGE).heat.bound is None


def test_each_picture_has_a_dot_on_its_side_of_the_bound() -> None:
    plot = psnr_plot(reports.failing().checks, "PSNR")
    assert plot is not None
    assert plot.allowed == "right"
    dots = 0
    for lane in plot.lanes:
        assert lane.bound is not None
        for dot in lane.dots:
            assert (dot.at >= lane.bound) == dot.passed
            dots += 1
    assert dots == len([one for one in reports.failing().checks if one.psnr_db is not None])
    assert {"NaN", "∞"} <= {tick.label for tick in plot.ticks}


def test_differences_are_drawn_on_one_scale_whatever_their_unit() -> None:
    checks = [
        check("tensors", "a", "d1", (0.01, 60.0), Threshold(max_difference=0.02, psnr_db=50, peak=1)),
        check("tensors", "a", "d2", (2.55, 60.0), Threshold(max_difference=5.1, psnr_db=50, peak=255)),
        check("tensors", "a", "d3", (0.0, math.inf)),
    ]
    plot = difference_plot(checks, "differences")
    assert plot is not None
    assert plot.allowed == "left"
    assert all(dot.at <= (lane.bound or 0) for lane in plot.lanes for dot in lane.dots)
    first, second, third = plot.lanes
    assert first.dots[0].at == second.dots[0].at
    assert first.bound == second.bound
    assert third.dots[0].at < first.dots[0].at
    assert "0" in {tick.label for tick in plot.ticks}


def test_nothing_measured_gives_no_plot() -> None:
    assert psnr_plot(reports.not_run().checks, "PSNR") is None
    assert difference_plot(reports.not_run().checks, "differences") is None
    assert change_plots(()) == []


def test_changes_have_a_mean_within_their_interval() -> None:
    first, second = change_plots(reports.paired().pairs)
    assert [len(first.lanes), len(second.lanes)] == [2, 1]
    for lane in (*first.lanes, *second.lanes):
        assert lane.bar is not None
        assert lane.bar.low <= lane.bar.at <= lane.bar.high
    assert [lane.passed for lane in first.lanes] == [True, False]
    single = second.lanes[0].bar
    assert single is not None
    assert single.low == single.high
    assert first.zero is not None


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.021, 0.004), (47.3, 158.9), (1e-9, 2e-9), (-5.0, 100000.0)])
def test_ticks_are_few_and_in_order(low: float, high: float) -> None:
    ticks = Axis(low=low, high=high).ticks([])
    places = [tick.at for tick in ticks]
    assert 2 <= len(ticks) <= 7
    assert places == sorted(places)
    assert len({tick.label for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(-7, -6), (-12, 0), (-3, 3)])
def test_ticks_of_powers_are_few(low: int, high: int) -> None:
    ticks = Axis(low=low, high=high, logarithmic=True).ticks([0.0, math.inf, math.nan])
    assert 2 + 2 <= len(ticks) <= 8


def test_a_plot_of_very_many_pictures_names_none() -> None:
    checks = [check("pictures", "a", "uint8", (1.0, 70.0), case=f"{number}.png") for number in range(401)]
    plot = psnr_plot(checks, "PSNR")
    assert plot is not None
    assert {dot.title for dot in plot.lanes[0].dots} == {""}


def test_the_script_holds_nothing_of_the_report() -> None:
    one, other = (
        re.findall(r"<script>(.*?)</script>", report_html(make()), re.DOTALL)
        for make in (reports.hostile, reports.paired)
    )
    assert one == other
    assert json.dumps(one).isascii()
