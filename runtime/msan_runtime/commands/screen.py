"""What commands share on the screen: the error stream, and help with its options in groups."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Console
from typer.core import TyperCommand

__all__ = ["GroupedCommand", "errors"]

errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


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
