"""Writes the table of a manifest's keys from its JSON Schema, before Sphinx reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["schema_table", "setup"]

SCHEMA = "schemas/manifest-2.schema.json"


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point of an extension."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}


def schema_table(schema: Mapping[str, Any]) -> str:
    """A Markdown table: each key with its type and description, keys inside of others by their path."""
    rows = (f"| `{path}` | {kind} | {text} |" for path, kind, text in _keys(schema, ""))
    return "\n".join(("| key | value | |", "|---|---|---|", *rows)) + "\n"


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "reference" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    schema = json.loads(files("msan_runtime").joinpath(SCHEMA).read_text(encoding="utf-8"))
    (folder / "manifest-2.md").write_text(schema_table(schema), encoding="utf-8")


def _keys(schema: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, value in schema["properties"].items():
        path = f"{prefix}{name}"
        yield path, _kind(value), value.get("description", "")
        inner = value.get("items", value)
        inner = next((one for one in inner.get("oneOf", ()) if one.get("type") == "object"), inner)
        if "properties" in inner:
            yield from _keys(inner, f"{path}[]." if value.get("type") == "array" else f"{path}.")


def _kind(value: Mapping[str, Any]) -> str:
    """The values that a schema allows, in words."""
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{one}`" for one in value["enum"])
    if "oneOf" in value:
        return " or ".join(_kind(one) for one in value["oneOf"])
    if value["type"] == "array":
        count = f"{value['minItems']} of " if "minItems" in value else "list of "
        return f"{count}{_kind(value['items'])}"
    if value["type"] == "object" and "additionalProperties" in value and "properties" not in value:
        return f"object of {_kind(value['additionalProperties'])}"
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    pattern = f", `{value['pattern']}`".replace("|", "\\|") if "pattern" in value else ""
    return " or ".join(kinds) + pattern
