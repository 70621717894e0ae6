"""The report as a page in a real browser: what moves, what is drawn, what is asked of other places."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Generator
from dataclasses import replace as replaced
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page
from tests.browsing import CONTRASTS, WATCH, Watch, chromium, launched
from tests.export import reports

from msan_export.acceptance.verdict import ParityReport
from msan_export.comparison import BundleComparison
from msan_export.report import pictures
from msan_export.report.comparison import comparison_html
from msan_export.report.page import report_html

Opener = Callable[..., Page]


@cache
def html_of(make: Callable[[], ParityReport | BundleComparison]) -> str:
    made = make()
    return report_html(made) if isinstance(made, ParityReport) else comparison_html(made)


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with launched() as opened:
        yield opened


def test_a_missing_browser_is_a_failure_where_everything_is_to_be_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="make browser"):
        chromium()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="make browser"):
        chromium()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def show(browser: Browser, watch: Watch, tmp_path: Path) -> Generator[Opener]:
    """Open a report, ``width`` px wide; when the test is over, nothing may have been said or asked for."""

    def opened(
        make: Callable[[], ParityReport], *, width: int = 1200, scheme: str = "light", **options: object
    ) -> Page:
        file = tmp_path / "report.html"
        file.write_text(html_of(make), encoding="utf-8")
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce", **options)  # pyright: ignore
        page = context.new_page()
        page.on("console", lambda message: watch.said.append(message.text))
        page.on("pageerror", lambda error: watch.said.append(str(error)))
        page.on("dialog", watch.dismiss)
        page.on("request", lambda request: watch.asked.append(request.url))
        page.add_init_script(WATCH)
        page.goto(file.as_uri())
        return page

    yield opened
    for context in list(browser.contexts):
        for page in context.pages:
            if page.evaluate("typeof violations") == "object":
                watch.said += page.evaluate("violations")
        context.close()
    elsewhere = [url for url in watch.asked if not url.startswith("data:") and not url.endswith("/report.html")]
    assert (watch.said, elsewhere) == ([], [])


@cache
def apart() -> ParityReport:
    """A report with one picture: a grey reference, a darker result with a white square, a black input."""
    size = (96, 128, 3)
    expected, given, blurred = (np.full(size, level, np.uint8) for level in (160, 100, 0))
    given[:24, :32] = 255
    exhibit = replaced(reports.failing().worst[0], expected=expected, given=given, blurred=blurred, case="apart")
    return replaced(reports.failing(), worst=(exhibit,))


def hostile_comparison() -> BundleComparison:
    return reports.compared(reports.HOSTILE)


def pixels(place: Locator) -> np.ndarray:
    with Image.open(io.BytesIO(place.screenshot())) as picture:
        return np.asarray(picture.convert("RGB"))


def split_of(page: Page) -> float:
    """The share of the width at which the right picture begins, as it is drawn."""
    clip = page.locator(".layer.on-right").first.evaluate("layer => getComputedStyle(layer).clipPath")
    return float(clip.removesuffix("%)").rpartition(" ")[2]) if clip != "none" else 0.0


def until(page: Page, condition: str) -> None:
    """Wait until ``condition`` holds: the page's policy forbids what Playwright's own waiting does."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never {condition}")


def overflow_px(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("make", reports.ALL.values(), ids=reports.ALL.keys())
def test_a_page_says_nothing_asks_for_nothing_and_fits(show: Opener, make: Callable[[], ParityReport]) -> None:
    page = show(make)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for width in (1200, 950, 800, 400, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert overflow_px(page) == 0
    assert page.get_by_role("heading", level=1).count() == 1
    broken = page.evaluate("[...document.images].filter((one) => !one.complete || !one.naturalWidth).length")
    assert broken == 0


def test_hostile_names_are_seen_and_not_obeyed(show: Opener) -> None:
    page = show(reports.hostile)
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert "<script>alert(1)</script>\"'{{ 7*7 }}" in page.get_by_role("heading", level=1).inner_text()
    assert page.get_by_role("heading", level=2, name="FAIL", exact=True).is_visible()


def test_the_policy_is_in_force(show: Opener, watch: Watch) -> None:
    page = show(reports.passing)
    page.evaluate("""() => {
        const picture = new Image();
        picture.src = "http://127.0.0.1:9/picture.png";
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(picture, script);
    }""")
    until(page, "violations.length >= 2")
    assert set(page.evaluate("violations")) == {"img-src", "script-src-elem"}
    assert page.evaluate("window.ran") is None
    page.evaluate("violations.length = 0")
    watch.said.clear()
    # Chromium tells of a request that it then refuses to make.
    watch.asked[:] = [url for url in watch.asked if "127.0.0.1:9" not in url]


def test_the_line_follows_the_pointer(show: Opener) -> None:
    page = show(apart)
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    middle = pixels(stage)
    assert split_of(page) == 50
    at = box["y"] + box["height"] * 0.9
    page.mouse.move(box["x"] + box["width"] * 0.5, at)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, at, steps=4)
    assert split_of(page) == pytest.approx(25, abs=1)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] * 0.8, at)
    assert split_of(page) == pytest.approx(25, abs=1)
    moved = pixels(stage)
    row, width = int(moved.shape[0] * 0.7), moved.shape[1]
    assert middle[row, int(width * 0.35)].tolist() == [160] * 3
    assert moved[row, int(width * 0.35)].tolist() == [100] * 3
    assert moved[row, int(width * 0.15)].tolist() == [160] * 3
    assert float(page.get_by_role("slider").input_value()) == pytest.approx(25, abs=1)


def test_the_line_follows_a_finger(show: Opener) -> None:
    page = show(apart, width=400, has_touch=True)
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + 20)
    assert split_of(page) == pytest.approx(75, abs=1.5)


def test_the_line_follows_the_keyboard_and_says_where_it_is(show: Opener) -> None:
    page = show(apart)
    slider = page.get_by_role("slider", name="Where the line is: left and right version of apart")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert split_of(page) == 45
    assert slider.get_attribute("aria-valuetext") == "45 % reference, 55 % converted"
    stage = page.locator(".stage")
    page.keyboard.press("Home")
    assert split_of(page) == 0
    assert pixels(stage)[-9, ::40].min(axis=0).tolist() == [100] * 3
    page.keyboard.press("End")
    assert split_of(page) == 100
    assert pixels(stage)[-9, 9:-9:40].min(axis=0).tolist() == [160] * 3


def test_any_two_versions_stand_side_by_side(show: Opener) -> None:
    page = show(apart)
    stage = page.locator(".stage")
    page.get_by_role("combobox", name="left").select_option("input")
    picture = pixels(stage)
    row, width = int(picture.shape[0] * 0.7), picture.shape[1]
    assert [picture[row, int(width * at), 0] for at in (0.25, 0.75)] == [0, 100]
    assert page.locator(".label.left").inner_text().strip(" ◂") == "input"
    page.get_by_role("combobox", name="right").select_option("reference")
    picture = pixels(stage)
    assert [picture[row, int(width * at), 0] for at in (0.25, 0.75)] == [0, 160]
    page.get_by_role("combobox", name="right").select_option("input")
    assert pixels(stage)[row, [width // 4, 3 * width // 4]].max() == 0
    page.get_by_role("combobox", name="right").select_option("difference")
    heat = pictures.heat_map(np.array([[60]], np.uint8), 128)[0]
    assert pixels(stage)[row, int(width * 0.75)].tolist() == heat[0].tolist()


def test_the_picture_can_be_enlarged_within_its_window(show: Opener) -> None:
    page = show(apart, width=400)
    stage, window = page.locator(".stage"), page.locator(".window")
    before = stage.bounding_box()
    page.get_by_role("combobox", name="zoom").select_option("4")
    after, frame = stage.bounding_box(), window.bounding_box()
    assert before is not None
    assert after is not None
    assert frame is not None
    assert after["width"] == pytest.approx(4 * before["width"], rel=0.01)
    assert frame["width"] <= 400
    line = page.locator(".line").bounding_box()
    assert line is not None
    assert frame["x"] < line["x"] < frame["x"] + frame["width"]
    assert overflow_px(page) == 0
    window.focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.window').scrollLeft > 0")


def test_the_heat_map_shows_where_and_how_far(show: Opener) -> None:
    page = show(apart)
    picture = pixels(page.locator(".map img"))
    height, width = picture.shape[:2]
    expected = pictures.heat_map(np.array([[95, 60]], np.uint8), 128)[0].tolist()
    assert picture[height // 8, width // 8].tolist() == expected[0]
    assert picture[height // 2, width // 2].tolist() == expected[1]
    ramp = pixels(page.locator(".scale > img"))
    assert ramp[6, 1].max() < 30
    assert ramp[6, -3].min() > 200
    assert page.locator(".scale text").all_text_contents() == ["0", "32", "64", "96", "128"]


def test_plots_are_drawn(show: Opener) -> None:
    page = show(reports.failing)
    lanes = page.locator("#pictures .lane")
    assert lanes.count() == 8
    for lane in lanes.all():
        picture = pixels(lane)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5
    crosses = page.locator("#pictures .lane .dot.bad")
    assert crosses.count() == 4
    box = crosses.first.bounding_box()
    assert box is not None
    assert box["width"] > 5
    texts = page.locator("#pictures .axis").first.locator("text")
    edges = [box for box in (text.bounding_box() for text in texts.all()) if box is not None]
    assert len(edges) == texts.count() > 3


@pytest.mark.parametrize("width", [1200, 400])
def test_numbers_of_an_axis_do_not_overlap(show: Opener, width: int) -> None:
    page = show(reports.paired, width=width)
    for axis in page.locator(".axis").all():
        boxes = [text.bounding_box() for text in axis.locator("text:not(.title)").all()]
        places = sorted((box["x"], box["x"] + box["width"]) for box in boxes if box is not None)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(places))
        assert places[0][0] >= 0
        assert places[-1][1] <= width


def test_details_open_by_pointer_and_keyboard(show: Opener) -> None:
    page = show(reports.large)
    summary = page.locator("#pictures summary")
    cell = page.locator("#pictures details td").first
    assert not cell.is_visible()
    summary.click()
    assert cell.is_visible()
    summary.press("Enter")
    assert not cell.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_legible_in_light_and_dark(show: Opener, scheme: str) -> None:
    page = show(reports.failing, scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = sum(int(part) for part in ground.strip("rgb()").split(",")) / 3
    assert (level > 128) == (scheme == "light")
    contrasts: dict[str, float] = page.evaluate(CONTRASTS)
    assert len(contrasts) > 15
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


def test_the_verdict_is_told_by_more_than_colour(show: Opener) -> None:
    page = show(reports.failing)
    assert page.get_by_role("region", name="FAIL").get_by_text("3 of 40 checks failed.").is_visible()
    assert page.get_by_role("link", name="Pictures FAIL").is_visible()
    assert page.get_by_role("link", name="Types pass").is_visible()


def test_without_a_script_both_versions_are_still_seen(show: Opener) -> None:
    page = show(apart, java_script_enabled=False)
    assert not page.get_by_role("slider").is_visible()
    picture = pixels(page.locator(".stage"))
    row, width = int(picture.shape[0] * 0.7), picture.shape[1]
    assert [picture[row, int(width * at), 0] for at in (0.25, 0.75)] == [160, 100]


def test_on_paper_every_check_is_there_and_no_control(show: Opener) -> None:
    page = show(reports.failing, scheme="dark")
    page.get_by_role("combobox", name="zoom").first.select_option("4")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.get_by_role("slider").first.is_visible()
    assert page.locator("#pictures details td").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.set_viewport_size({"width": 700, "height": 1000})  # A4 within its margins
    assert overflow_px(page) == 0
    assert page.pdf().startswith(b"%PDF")


def test_the_skip_link_leads_to_the_report(show: Opener) -> None:
    page = show(reports.passing)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the report"
    box = page.locator(".skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0


def test_two_bundles_are_shown_side_by_side(show: Opener) -> None:
    page = show(reports.compared)
    page.locator("summary", has_text="1 thing").click()
    for width in (1200, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert overflow_px(page) == 0
    slider = page.get_by_role("slider").first
    slider.focus()
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "0 % A, 100 % B"
    viewers = page.locator("[data-viewer]")
    assert viewers.count() == 2
    inside = slice(20, -20)  # the corners are round
    assert pixels(viewers.nth(0).locator(".map img"))[inside, inside].max() > 60
    assert pixels(viewers.nth(1).locator(".map img"))[inside, inside].max() == 0


def test_hostile_names_of_bundles_are_seen_and_not_obeyed(show: Opener) -> None:
    page = show(hostile_comparison)
    assert page.evaluate("document.scripts.length") == 1
    assert "<script>alert(1)</script>" in page.get_by_role("heading", level=1).inner_text()
    page.set_viewport_size({"width": 400, "height": 900})
    assert overflow_px(page) == 0
