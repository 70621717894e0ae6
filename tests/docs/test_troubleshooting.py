"""The messages that docs/troubleshooting.md quotes are in the source, and those of the source are on the page."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
ROOMS = ("runtime", "export", "calib", "msan")

LEAST_SHARE = 0.9
"""Of the messages of errors: new ones come with the code that raises them, and the page follows."""

INTERNAL = {"ValueError", "RuntimeError", "AttributeError", "TypeError", "MissingExtraError"}
"""Errors that no user sees as they are."""


def quoted() -> list[str]:
    """The messages in the first columns of the page's tables."""
    cells = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def template(node: ast.AST) -> str | None:
    """The text of a string in the source, ``…`` for whatever is filled in; ``None`` if it is none."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[sd]|%\.\df", "…", node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = (template(value) if isinstance(value, ast.Constant) else "…" for value in node.values)
        return re.sub("…+", "…", "".join(part or "" for part in parts))
    return None


@cache
def source() -> tuple[list[ast.Call], frozenset[str]]:
    """Every call of the rooms, and the text of every string that is no docstring."""
    calls: list[ast.Call] = []
    texts: set[str] = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        inner = {id(value) for node in nodes if isinstance(node, ast.JoinedStr) for value in node.values}
        inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        calls += [node for node in nodes if isinstance(node, ast.Call)]
        texts |= {text for node in nodes if id(node) not in inner and (text := template(node))}
    return calls, frozenset(texts)


def held(message: str, text: str) -> bool:
    """Whether ``text`` begins as quoted, a ``…`` of the page standing for any part of it."""
    return re.match(".*?".join(map(re.escape, message.rstrip("….: ").split("…"))), text, flags=re.S) is not None


def test_every_quoted_message_is_in_the_source() -> None:
    _, texts = source()
    messages = quoted()
    assert len(messages) > 200
    assert not [message for message in messages if not any(held(message, text) for text in texts)]


def test_the_messages_of_errors_are_on_the_page() -> None:
    messages = quoted()
    missing: list[str] = []
    total = 0
    for call in source()[0]:
        text = template(call.args[0]) if call.args else None
        name = ast.unparse(call.func)
        if not text or not name.endswith("Error") or name in INTERNAL or not re.search(r"[a-z]{3}.* ", text):
            continue
        total += 1
        if not any(held(message, text) for message in messages):
            missing.append(text)
    assert len(missing) <= (1 - LEAST_SHARE) * total, missing


def test_a_message_that_is_not_there_is_noticed() -> None:
    assert held("… has no …. Use --flavour tensorrt for it", "TensorRT-RTX … has no …. Use --flavour tensorrt for it")
    assert not held("no bundle at …. Shipped bundles: …", "no bundle in …. Shipped bundles: …")
