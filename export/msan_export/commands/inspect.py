"""``msan inspect``: what a graph, an engine or a bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msan_export.commands.shared import say, writing

if TYPE_CHECKING:
    from msan_export.inspection import Inspection

__all__ = ["inspect"]


def inspect(
    path: Annotated[Path, typer.Argument(help="ONNX file, engine, or bundle's folder.", metavar="PATH")],
    layers: Annotated[bool, typer.Option("--layers", help="Every layer with its type.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write what is found here.")] = None,
) -> None:
    """Show what a graph, an engine or a bundle is: types as built, FLOPs by type, contract, whether it runs here."""
    import dataclasses

    from msan_export import inspection
    from msan_runtime.atomic import write_text
    from msan_runtime.bundle import shipped_bundles
    from msan_runtime.strictjson import strict_json

    found = inspection.inspect(path if path.exists() else shipped_bundles().get(str(path), path))
    for part in (found, *found.parts):
        _print_inspection(part, layers=layers)
    if json is not None:
        with writing(json):
            write_text(json, strict_json({"schema_version": 1, **dataclasses.asdict(found)}))


def _print_inspection(found: Inspection, *, layers: bool) -> None:
    say(f"{found.path} ({found.kind})")
    for name, value in found.facts.items():
        say(f"  {name}: {value}")
    for kind, count in found.layer_counts.items():
        say(f"  {count:4} × {kind}")
    if found.gflop:
        total = sum(found.gflop.values())
        shares = ", ".join(f"{dtype} {flops:.2f} ({flops / total:.0%})" for dtype, flops in sorted(found.gflop.items()))
        say(f"  convolutions, GFLOP at 256×256: {shares}")
    for layer in found.layers if layers else ():
        say(f"    {layer.name}: {layer.kind} {layer.dtype}")
    for why in dict.fromkeys(found.islands.values()):
        nodes = [node for node, reason in found.islands.items() if reason == why]
        say(f"  in FP32, {why}: {', '.join(nodes)}")
