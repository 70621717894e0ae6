"""What commands share on the screen: the error stream, and help with its options in groups."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from rich.console import Console
from typer.core import TyperCommand

__all__ = ["GroupedCommand", "errors", "printable"]

UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but for the end of a line, and bytes of a name that is not UTF-8."""

errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def printable(text: str) -> str:
    """``text`` without what would command a terminal: a file's name may hold it. It is spelt out, like ``\\x1b``."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class GroupedCommand(TyperCommand):
    """A command whose help lists its options by their ``rich_help_panel``, in plain text."""

    # Any: click's types, which are typer's own or another package's, by the release of typer.
    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups[getattr(parameter, "rich_help_panel", None) or "Options"].append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)
