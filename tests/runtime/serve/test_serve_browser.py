"""The page in a real browser: pictures in, slider, downloads to the byte, errors in words, keyboard, colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from tests.browsing import CONTRASTS, WATCH, Watch, launched
from tests.runtime.serve.conftest import Launch, Served, png
from tests.runtime.serve.test_serve_process import PHOTO, deblurred_by_command

from msan_runtime.contract import PictureArray

Noise = Callable[..., PictureArray]

GIVE = """
([kind, name, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}
"""

Show = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with launched() as opened:
        yield opened


@pytest.fixture
def show(browser: Browser) -> Generator[Show]:
    """Open a server's page; in the end it must have said nothing, and asked nobody but its server."""
    watch = Watch()
    servers: list[Served] = []

    def opened(server: Served, *, width: int = 1200, scheme: str = "light", path: str = "/") -> Page:
        servers.append(server)
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # pyright: ignore[reportArgumentType]
            accept_downloads=True,
        )
        page = context.new_page()
        # A browser itself writes a line for each answer of 400 and more, and for each that fails.
        page.on(
            "console", lambda message: watch.said.append(message.text) if "Failed to load" not in message.text else None
        )
        page.on("pageerror", lambda error: watch.said.append(str(error)))
        page.on("request", lambda request: watch.asked.append(request.url))
        page.add_init_script(WATCH)
        page.goto(server.url + path)
        return page

    yield opened
    for context in list(browser.contexts):
        for page in context.pages:
            watch.said += page.evaluate("window.violations")
        context.close()
    own = tuple(f"{server.url}/" for server in servers)
    elsewhere = [url for url in watch.asked if not url.startswith((*own, "data:", "blob:"))]
    assert (watch.said, elsewhere) == ([], [])


def until(page: Page, condition: str, seconds: float = 30) -> None:
    """Wait until ``condition`` holds: the page's policy forbids what Playwright's own waiting does."""
    for _ in range(round(seconds * 20)):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never {condition}")


def done(page: Page, count: int = 1) -> None:
    until(page, f"document.querySelectorAll('li.done .viewer:not([hidden])').length === {count}")


def split_of(page: Page) -> float:
    """The share of the width at which the result begins, as it is drawn."""
    clip = page.locator(".after").first.evaluate("layer => getComputedStyle(layer).clipPath")
    return float(clip.removesuffix("%)").rpartition(" ")[2])


def test_a_picture_goes_in_and_comes_out_as_from_the_command_line(launch: Launch, show: Show, tmp_path: Path) -> None:
    server = launch("--tile", "256x256", bundle="msan-s")
    page = show(server)
    page.locator("#files").set_input_files(PHOTO)
    done(page)
    assert page.locator("li .state").inner_text().startswith("Done")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download lighthouse-blurred-deblurred.png").click()
    waiting.value.save_as(tmp_path / "page.png")
    expected = deblurred_by_command(PHOTO, tmp_path / "command.png", Path("msan-s"), "--tile", "256x256")
    assert (tmp_path / "page.png").read_bytes() == expected

    slider = page.get_by_role("slider", name="Line between before and after")
    assert split_of(page) == 50
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert split_of(page) == 45
    assert slider.get_attribute("aria-valuetext") == "45 % before, 55 % after"
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "46 % before, 54 % after"
    page.keyboard.press("ArrowLeft")
    box = page.locator(".stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 50, steps=4)
    page.mouse.up()
    assert split_of(page) == pytest.approx(20, abs=1)
    page.get_by_role("combobox", name="Zoom").select_option("2")
    enlarged = page.locator(".stage").bounding_box()
    assert enlarged is not None
    with Image.open(PHOTO) as picture:
        assert enlarged["width"] == pytest.approx(2 * picture.width, abs=1)


def test_several_at_once_and_a_broken_one(served: Served, show: Show, noise: Noise, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(noise(30 + number, 40, 3)))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    page = show(served)
    page.locator("#files").set_input_files([tmp_path / f"{n}.png" for n in range(4)] + [tmp_path / "broken.jpg"])
    done(page, 4)
    until(page, "document.querySelectorAll('li.failed').length === 1")
    broken = page.locator("li.failed")
    assert broken.locator(".state").inner_text() == "The file is not a JPEG, PNG, WebP or TIFF picture"
    assert page.locator("#announcer").inner_text()
    downloads: list[str] = []
    page.on("download", lambda download: downloads.append(download.suggested_filename))
    page.get_by_role("button", name="Download all").click()
    page.wait_for_timeout(500)
    assert sorted(downloads) == [f"{number}-deblurred.png" for number in range(4)]
    page.get_by_role("button", name="Try broken.jpg again").click()
    until(page, "document.querySelectorAll('li.failed').length === 1")
    page.get_by_role("button", name="Remove broken.jpg").click()
    assert page.locator("#cards > li").count() == 4


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(served: Served, show: Show, noise: Noise, kind: str) -> None:
    page = show(served)
    page.evaluate(GIVE, [kind, "given.png", list(png(noise(20, 30, 3)))])
    done(page)
    assert page.locator("li h3").inner_text() == "given.png"


def test_options_are_sent(served: Served, show: Show, noise: Noise, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(30, 40, 3)))
    page = show(served)
    page.get_by_label("Format of results").select_option("webp")
    page.get_by_label("Quality of JPEG and WebP").fill("50")
    page.locator("#files").set_input_files(tmp_path / "a.png")
    done(page)
    assert page.get_by_role("link", name="Download a-deblurred.webp").is_visible()
    assert re.fullmatch(r"Done, [1-9] KB", page.locator("li .state").inner_text())


def test_a_quality_that_cannot_be_is_stopped_in_its_field(
    served: Served, show: Show, noise: Noise, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(30, 40, 3)))
    page = show(served)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    quality = page.get_by_label("Quality of JPEG and WebP")
    quality.fill("500")
    page.locator("#files").set_input_files(tmp_path / "a.png")
    assert page.locator("li .state").inner_text() == "Waiting for a quality from 1 to 100"
    assert page.get_by_text("Quality is a whole number from 1 to 100").first.is_visible()
    assert page.locator("#announcer").inner_text() == "Quality is a whole number from 1 to 100"
    assert page.evaluate("document.activeElement.id") == "quality"
    assert quality.get_attribute("aria-invalid") == "true"
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5
    assert not [url for url in asked if "/v1/" in url]
    quality.fill("50")
    page.keyboard.press("Tab")
    done(page)
    assert not page.locator("#quality-error").is_visible()


def test_an_empty_file_is_told_and_holds_nothing_up(served: Served, show: Show, noise: Noise, tmp_path: Path) -> None:
    names = ["0.png", "1.png", "2.png", "3.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"" if name in ("0.png", "2.png") else png(noise(30, 40, 3)))
    page = show(served)
    page.locator("#files").set_input_files([tmp_path / name for name in names])
    done(page, 2)
    assert page.locator("li.failed .state").all_inner_texts() == ["The file is empty."] * 2


def test_what_a_browser_cannot_show_can_be_downloaded(served: Served, show: Show, noise: Noise, tmp_path: Path) -> None:
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.tif")
    page = show(served)
    page.locator("#files").set_input_files(tmp_path / "a.tif")
    until(page, "document.querySelector('li .note')?.textContent.includes('does not show TIFF')")
    assert page.locator("li .actions .note").is_visible()
    assert "does not show TIFF" in page.locator("#announcer").inner_text()
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5
    assert page.get_by_role("link", name="Download a-deblurred.tif").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_token_is_asked_for_and_used(launch: Launch, show: Show, noise: Noise, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(30, 40, 3)))
    page = show(launch(environment={"MSAN_SERVE_TOKEN": "0123456789abcdef0123"}), scheme=scheme)
    page.locator("#files").set_input_files(tmp_path / "a.png")
    field = page.get_by_label("This server asks for a token")
    field.wait_for()
    until(page, "document.activeElement.id === 'token'")
    assert page.locator("#announcer").inner_text() == "This server asks for a token"
    assert not page.locator("#token-error").is_visible()
    for wrong in ("wrong, but long enough", "wrong-but-long-enough", "wrong-but-long-enough"):
        page.keyboard.type(wrong)
        page.evaluate("document.getElementById('announcer').textContent = ''")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('announcer').textContent === 'The token was not accepted'")
        assert page.locator("#token-error").inner_text() == "The token was not accepted"
        assert page.evaluate("document.activeElement.id") == "token"
        assert field.get_attribute("aria-invalid") == "true"
        assert min(page.evaluate(CONTRASTS).values()) >= 4.5
    page.keyboard.type("0123456789abcdef0123")
    page.keyboard.press("Enter")
    done(page)
    assert not page.locator("#token-form").is_visible()
    assert page.evaluate("document.activeElement.className") == "remove"


def test_a_server_that_is_gone_is_told(launch: Launch, show: Show, noise: Noise, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(30, 40, 3)))
    server = launch()
    page = show(server)
    assert server.stop() == 0
    page.route("**/v1/**", lambda route: route.abort())  # silent, unlike a refused connection
    page.locator("#files").set_input_files(tmp_path / "a.png")
    until(page, "document.querySelectorAll('li.failed').length === 1")
    assert "cannot be reached" in page.locator("li.failed .state").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_widths_and_keyboard(served: Served, show: Show, noise: Noise, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(300, 400, 3)))
    (tmp_path / "a-rather-long-name-that-has-to-break-somewhere-on-a-phone.jpg").write_bytes(b"no picture")
    page = show(served, scheme=scheme)
    page.locator("#files").set_input_files(sorted(tmp_path.iterdir()))
    done(page)
    until(page, "document.querySelectorAll('li.failed').length === 1")
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5
    for width in (1200, 700, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    page.reload()
    names: list[str] = []
    for _ in range(5):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert names == ["skip", "files", "format", "quality", ""]
    assert page.get_by_role("heading", level=1).count() == 1


def test_the_interface_page_is_readable(served: Served, show: Show) -> None:
    page = show(served, path="/docs", width=400)
    assert page.get_by_role("heading", name="POST /v1/deblur").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert min(page.evaluate(CONTRASTS).values()) >= 4.5


def test_a_picture_of_noise_is_drawn_on_both_sides(served: Served, show: Show, tmp_path: Path) -> None:
    Image.fromarray(np.full((120, 160, 3), 40, np.uint8)).save(tmp_path / "dark.png")
    page = show(served)
    page.locator("#files").set_input_files(tmp_path / "dark.png")
    done(page)
    shot = tmp_path / "shot.png"
    page.locator(".stage").screenshot(path=shot)
    with Image.open(shot) as picture:
        seen = np.asarray(picture.convert("RGB"))
    row, width = seen.shape[0] // 4, seen.shape[1]
    assert seen[row, width // 4].tolist() == [40] * 3
    assert seen[row, 3 * width // 4].tolist() == [215] * 3
