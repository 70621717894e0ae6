"""Checks links without a network: ``python -m tests.docs.links build/docs`` for the built site, a test for the sources.

A link into the site or the repository must lead to a file, and its anchor to a heading. Of an external link only the
form is checked; ``make docs-linkcheck`` asks the servers.
"""

from __future__ import annotations

import html.parser
import re
import sys
from collections.abc import Callable, Set
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["broken_in_markdown", "broken_in_site", "headings"]

MARKDOWN_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)|<(https?://[^>\s]*)>")
FENCED = re.compile(r"^(`{3,})[^\n]*\n.*?^\1$", re.M | re.S)


def broken_in_markdown(path: Path) -> list[str]:
    """The links of a Markdown file that lead nowhere on GitHub."""
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", path.read_text(encoding="utf-8")))
    found = (first or second for first, second in MARKDOWN_LINK.findall(text))
    return [link for link in found if not _leads_somewhere(link, path, headings)]


def broken_in_site(folder: Path) -> list[str]:
    """The links of a built site that lead nowhere, each with its page."""
    return [
        f"{page.relative_to(folder)}: {link}"
        for page in sorted(folder.rglob("*.html"))
        for link in _page(page).links
        if not _leads_somewhere(link, page, lambda target: _page(target).anchors)
    ]


@cache
def headings(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a Markdown file."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    found: list[str] = []
    for title in re.findall(r"^#+ (.+)$", text, flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        count = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{count}" if count else slug)
    return frozenset(found)


class _Page(html.parser.HTMLParser):
    """The links and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("href", "src") and tag in ("a", "img", "link", "script")):
                self.links.append(value)
            if value and name in ("id", "name"):
                self.anchors.add(value)


@cache
def _page(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def _leads_somewhere(link: str, source: Path, anchors_of: Callable[[Path], Set[str]]) -> bool:
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        return re.fullmatch(r"[a-z0-9.-]+\.[a-z]{2,}(:\d+)?", parts.netloc) is not None and " " not in link
    if parts.scheme:
        return parts.scheme in ("mailto", "data")
    target = source if not parts.path else source.parent / unquote(parts.path)
    if not target.exists():
        return False
    if not parts.fragment or target.suffix not in (".md", ".html"):
        return True
    return unquote(parts.fragment) in anchors_of(target)


def _main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    broken = broken_in_site(folder)
    pages = len(list(folder.rglob("*.html")))
    _say(f"{pages} pages, {len(broken)} broken links", *broken)
    return 1 if broken or not pages else 0


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
