"""A page taken apart, for tests of what is in it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements of a page, the text in all, tags left open, and of each drawing whether it is named, or hidden."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.told: list[bool] = []
        self.drawings: list[bool] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            told = any(self.told[-1:]) or ("aria-hidden", "true") in attrs or "aria-label" in dict(attrs)
            self.open.append(tag)
            self.told.append(told)
            self.drawings += [told] if tag == "svg" else []

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1:] != [tag]:
            raise ValueError(f"</{tag}> closes {self.open[-3:]}")
        self.open.pop()
        self.told.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
