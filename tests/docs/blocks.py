"""The documents: their fenced code blocks, the marks that say which of them are run, and the ``msan`` lines in them.

A mark is a comment in the line before the fence, which neither GitHub nor the site shows:

- ``<!-- run -->``: the block is run, in order with the document's others, in a folder with the files that it names;
- ``<!-- run: slow -->``: the same, under ``make test-slow`` alone;
- ``<!-- output -->``: what the block run before prints holds these lines, ``…`` standing for anything.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCUMENTS", "ROOT", "Block", "blocks_of", "inline_commands", "msan_lines"]

ROOT = Path(__file__).parents[2]

GENERATED = ("docs/reference/cli/", "docs/reference/generated/")

DOCUMENTS = [
    "README.md",
    *(
        name
        for name in sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
        if not name.startswith(GENERATED)
    ),
]
"""Every page that people write, by its path in the repository."""

FENCED = re.compile(
    r"(?:^<!-- (?P<mark>[\w: ]+) -->\n\n?)?^(?P<fence>`{3,})(?P<language>[^`\n]*)\n(?P<text>.*?)^(?P=fence)$",
    re.M | re.S,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced code block of a document."""

    document: str
    line: int
    language: str
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(
            document=document,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            mark=found["mark"],
            text=found["text"],
        )
        for found in FENCED.finditer(text)
    ]


def msan_lines(block: Block) -> list[list[str]]:
    """The words of every ``msan`` command of a shell block, from ``msan`` on, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = (re.search(r"^(?:torchrun .*-m )?(msan .*)$", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


def inline_commands(document: str) -> list[list[str]]:
    """The words of every ``msan …`` in running text."""
    text = FENCED.sub("", (ROOT / document).read_text(encoding="utf-8"))
    return [shlex.split(found.replace("\n", " ")) for found in re.findall(r"(?<!`)`(msan [^`]*)`(?!`)", text)]
