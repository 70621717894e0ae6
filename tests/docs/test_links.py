"""Links in the sources lead to files and headings of the repository; the check of the built site finds broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.blocks import DOCUMENTS, ROOT
from tests.docs.links import broken_in_markdown, broken_in_site, headings


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md", "msan/msan/weights/msan-s.md"])
def test_links_of_a_document_lead_somewhere(document: str) -> None:
    assert not broken_in_markdown(ROOT / document)


def test_broken_links_of_a_document_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A (b) `c`\n[x](no.md) [y](#a-b-c) [z](#d) [w](https://no) ![p](page.md#e)\n`[v](none.md)`\n")
    assert broken_in_markdown(page) == ["no.md", "#d", "https://no", "page.md#e"]


def test_headings_of_one_name_are_numbered(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Same\n## Same\n```sh\n# comment\n```\n")
    assert headings(page) == {"same", "same-1"}


def test_broken_links_of_a_site_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<a id="top" href="b.html#here">b</a><img src="no.png"><a href="#top">t</a>')
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="index.html#gone">i</a>')
    assert broken_in_site(tmp_path) == ["b.html: index.html#gone", "index.html: b.html#here", "index.html: no.png"]
