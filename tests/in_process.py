"""``msan`` run in the tests' own process: quicker than starting it, and what it runs can be replaced."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from msan_runtime.cli import main

__all__ = ["Command", "Finished", "in_process"]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a run of the command ended."""

    code: object
    out: str
    err: str


Command = Callable[..., Finished]
"""Runs ``msan`` with these arguments."""


@contextmanager
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, lean: bool = False
) -> Generator[Command]:
    """A runner of the command; ``lean``: as the lean install has it, without the other rooms' commands."""
    if lean:
        monkeypatch.setattr("msan_runtime.cli.entry_points", lambda **_: ())
    logger = logging.getLogger("msan_runtime")
    handlers = list(logger.handlers)

    def run(*arguments: str | Path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["msan", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        logger.handlers = list(handlers)
        captured = capsys.readouterr()
        return Finished(code=exit_info.value.code or 0, out=captured.out, err=captured.err)

    yield run
    logger.handlers = handlers
