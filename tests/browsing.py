"""Pages in a real browser: where it is, what its pages do that ours must not, and how their colours contrast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Dialog, sync_playwright

__all__ = ["CONTRASTS", "WATCH", "Watch", "chromium", "launched"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--no-first-run",
]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
CONTRASTS = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  const words = "h1, h2, h3, p, li, td, th, dt, dd, a, summary, figcaption, label, span, option, button, select";
  for (const element of document.querySelectorAll(words)) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || element.closest(".hidden, .skip") || !element.checkVisibility()) continue;
    const [one, other] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
    const name = `${element.tagName}.${element.className}`;
    found[name] = Math.min(found[name] ?? 99, (one + 0.05) / (other + 0.05));
  }
  return found;
}
"""


@dataclass(kw_only=True)
class Watch:
    """What a page did that a report must not do."""

    said: list[str] = field(default_factory=list[str])
    asked: list[str] = field(default_factory=list[str])

    def dismiss(self, dialog: Dialog) -> None:
        self.said.append(dialog.message)
        dialog.dismiss()


def chromium() -> str:
    """Where the browser is. Without one tests are skipped, but fail where everything is to be tested."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        where = f"no browser among {', '.join(NAMES)}: make browser installs Chromium"
        if os.environ.get("CI"):
            pytest.fail(where)
        pytest.skip(where)
    return path


@contextmanager
def launched() -> Generator[Browser]:
    """The browser, without a window."""
    path = chromium()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield opened
        opened.close()
