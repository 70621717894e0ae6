"""The code blocks of the documents, run as they stand: shell blocks that are marked so, and all Python blocks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.docs.blocks import DOCUMENTS, Block, blocks_of

BASH = shutil.which("bash")
TIMEOUT_S = 300

RUN = {document: [block for block in blocks_of(document) if block.mark] for document in DOCUMENTS}


def quick(blocks: list[Block]) -> list[Block]:
    """The blocks without the slow ones and their output."""
    last_run = [
        next((one.mark for one in blocks[place::-1] if one.mark != "output"), None) for place in range(len(blocks))
    ]
    return [block for block, mark in zip(blocks, last_run, strict=True) if mark == "run"]


QUICK = [document for document, blocks in RUN.items() if quick(blocks)]
SLOW = [document for document, blocks in RUN.items() if len(quick(blocks)) < len(blocks)]

# docs/api.md has its own test, which also looks at what comes out: tests/runtime/test_api_docs.py.
PYTHON = [
    block
    for document in DOCUMENTS
    for block in blocks_of(document)
    if block.language == "python" and document != "docs/api.md"
]


def run(blocks: list[Block], folder: Path) -> None:
    """Run the shell blocks in order, and compare what they print with the output that stands beside them."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed = ""
    for block in blocks:
        if block.mark == "output":
            missing = [line for line in block.text.splitlines() if not printed_somewhere(line, printed)]
            assert not missing, f"{block}: not printed: {missing}\n{printed}"
            continue
        assert BASH is not None
        command = [BASH, "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{block}: exit code {done.returncode}\n{printed}"


def printed_somewhere(line: str, printed: str) -> bool:
    """Whether a line was printed; ``…`` stands for anything, and one space for any number."""
    words = (".*?".join(map(re.escape, word.split("…"))) for word in line.split())
    return re.search(r"^\s*" + r"\s+".join(words) + r"\s*$", printed, flags=re.M) is not None


@pytest.mark.skipif(BASH is None, reason="the blocks are run by bash")
@pytest.mark.parametrize("document", QUICK)
def test_the_marked_blocks_run(document: str, workspace: Path) -> None:
    run(quick(RUN[document]), workspace)


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="the blocks are run by bash")
@pytest.mark.parametrize("document", SLOW)
def test_the_marked_blocks_of_slow_documents_run(document: str, workspace: Path) -> None:
    run(RUN[document], workspace)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_runs(block: Block, workspace: Path) -> None:
    """With ``blurred``, a small picture, at hand."""
    assert workspace == Path.cwd()
    blurred = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    exec(compile(block.text, str(block), "exec"), {"blurred": blurred})


def test_marks_are_known() -> None:
    known = {"run": ("sh",), "run: slow": ("sh",), "output": ("text",)}
    wrong = [str(block) for blocks in RUN.values() for block in blocks if block.language not in known[block.mark or ""]]
    assert not wrong


def test_a_line_that_was_not_printed_is_noticed() -> None:
    assert printed_somewhere("PASS: …/msan-s (figures in …)", "a\nPASS: b/c/msan-s (figures in d e)\n")
    assert printed_somewhere("hash pass", "hash          pass   \n")
    assert not printed_somewhere("PASS: …", "FAIL: a\n")
