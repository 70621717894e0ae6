"""What a bundle is, as named facts that two bundles can be compared by: network, recipe, graphs, engines, figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from msan_runtime.bundle import Bundle
from msan_runtime.errors import BundleError
from msan_runtime.manifest import EngineEntry, GraphEntry

__all__ = ["PARITY_NAME", "FactName", "facts_of"]

PARITY_NAME = "parity.json"
READABLE_SCHEMAS = (1, 2)

FactName = tuple[str, str]
"""A group, and a name in it."""


def facts_of(bundle: Bundle) -> dict[FactName, str]:
    """Facts by group and name, in the order in which they are told.

    Raises:
        BundleError: if its verification's figures cannot be read.
    """
    return dict(_facts(bundle))


def _facts(bundle: Bundle) -> Iterator[tuple[FactName, str]]:
    manifest = bundle.manifest
    yield ("network", "name"), manifest.name
    for name, value in manifest.spec.items():
        yield ("network", name), str(value)
    yield ("network", "attention"), manifest.attention
    for name, value in manifest.provenance.items():
        yield ("origin", name.replace("_", " ")), value
    for name, value in manifest.recipe.items():
        yield ("recipe", name.replace("_", " ")), value
    for name, value in manifest.versions.items():
        yield ("versions", name), value
    for graph in manifest.graphs:
        yield from _graph_facts(bundle, graph)
    for engine in manifest.engines:
        yield from _engine_facts(bundle, engine)
    for name, words in _verification(bundle):
        yield ("verification", name), words


def _graph_facts(bundle: Bundle, graph: GraphEntry) -> Iterator[tuple[FactName, str]]:
    file, label = bundle.manifest.file(graph.path), _label(graph)
    yield ("graphs", f"{label}: file"), graph.path
    yield ("graphs", f"{label}: SHA-256"), file.sha256
    yield ("graphs", f"{label}: size"), f"{file.size_bytes / 1e6:.2f} MB"
    yield ("graphs", f"{label}: opset"), str(graph.opset)


def _engine_facts(bundle: Bundle, engine: EngineEntry) -> Iterator[tuple[FactName, str]]:
    file, profile = bundle.manifest.file(engine.path), engine.profile
    told = {
        "file": engine.path,
        "SHA-256": file.sha256,
        "size": f"{file.size_bytes / 1e6:.2f} MB",
        "version": engine.flavour_version,
        "compute capabilities": ", ".join(engine.compute_capabilities),
        "precision": engine.precision,
        "types as built": ", ".join(f"{count} {kind}" for kind, count in sorted(engine.layer_types.items())),
        "tiles": ", ".join("×".join(map(str, shape[1:])) for shape in (profile.min, profile.opt, profile.max)),
    }
    for name, value in told.items():
        yield ("engines", f"{engine.flavour}: {name}"), value


def _label(graph: GraphEntry) -> str:
    return f"{graph.precision} graph, {graph.io}"


def _verification(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What the bundle's own report came to; nothing if it has none."""
    if all(file.path != PARITY_NAME for file in bundle.manifest.files):
        return
    try:
        body: Any = json.loads(bundle.read(PARITY_NAME))
        if body["schema_version"] not in READABLE_SCHEMAS:
            yield "report", f"schema {body['schema_version']}, which this msan does not read"
            return
        yield from _reported(body, bundle)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise BundleError(
            f"{bundle.folder / PARITY_NAME} is no report that this msan reads ({problem}). Deploy the checkpoint again"
        ) from error


def _reported(body: Mapping[str, Any], bundle: Bundle) -> Iterator[tuple[str, str]]:
    labels = {graph.path: _label(graph) for graph in bundle.manifest.graphs}
    labels |= {engine.path: f"{engine.flavour} engine" for engine in bundle.manifest.engines}
    checks: list[Mapping[str, Any]] = body["checks"]
    counts = {word: sum(check["passed"] is passed for check in checks) for word, passed in _VERDICTS}
    yield "verdict", "pass" if body["passed"] else "fail"
    yield "checks", ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    figures: dict[str, list[tuple[float, float]]] = {}
    for check in checks:
        if check["psnr_db"] is not None and check["max_difference"] is not None:
            name = f"{labels.get(check['subject'], str(check['subject']))}: {check['quantity']}"
            figures.setdefault(name, []).append((float(check["max_difference"]), float(check["psnr_db"])))
    for name, found in figures.items():
        yield name, _worst_words(found)
    for scores in body.get("pairs", ()):
        subject = labels.get(scores["subject"], str(scores["subject"]))
        change = float(scores["change"]["psnr_db"]["mean"])
        yield f"{scores['data_set']}, {subject}: mean change of PSNR", f"{change:+.4f} dB"


_VERDICTS = (("passed", True), ("failed", False), ("not run", None))


def _worst_words(figures: list[tuple[float, float]]) -> str:
    """The largest difference and the lowest PSNR; not-a-number is worse than any number."""
    differences, psnrs = [one for one, _ in figures], [other for _, other in figures]
    largest = math.nan if any(map(math.isnan, differences)) else max(differences)
    lowest = math.nan if any(map(math.isnan, psnrs)) else min(psnrs)
    return f"difference up to {largest:.2g}, PSNR from {lowest:.1f} dB"
