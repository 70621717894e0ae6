"""Writes the command-line reference from the commands themselves: a page for each, before Sphinx reads."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from msan_runtime.cli import app as root_app

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["all_commands", "root_command", "setup", "write_pages"]

# Any: click's types, which are typer's own or another package's, by the release of typer.


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point of an extension."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "reference" / "cli"))
    return {"parallel_read_safe": True}


def root_command() -> Any:
    """The ``msan`` command with the commands of all rooms."""
    for entry_point in entry_points(group="msan.commands"):
        entry_point.load()(root_app)
    return typer.main.get_command(root_app)


def all_commands(command: Any, path: tuple[str, ...] = ("msan",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that runs something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from all_commands(child, (*path, name))


def write_pages(folder: Path) -> None:
    """A page for each command, and none for commands that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{'-'.join(words[1:])}.md": _page(words, command) for words, command in all_commands(root_command())}
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _page(words: tuple[str, ...], command: Any) -> str:
    context: Any = command.context_class(command, info_name=" ".join(words))
    usage = " ".join((*words, *command.collect_usage_pieces(context))).translate({ord("{"): None, ord("}"): None})
    parts = [f"# {' '.join(words)}", _escaped(command.help or ""), f"```text\n{usage}\n```"]
    for title, records in _groups(command, context).items():
        rows = "\n".join(f"| `{_in_cell(names)}` | {_escaped(text)} |" for names, text in records)
        parts.append(f"## {title}\n\n| | |\n|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _groups(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and help of the parameters by the title that they stand under in ``--help``."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        fallback = "Arguments" if parameter.param_type_name == "argument" else "Options"
        title = getattr(parameter, "rich_help_panel", None) or fallback
        groups.setdefault(title, []).append(record)
    return groups


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    """Help as it stands, in Markdown: what would be markup is spelt out."""
    for character in "\\*_<[]|`":
        text = text.replace(character, f"\\{character}")
    return text
