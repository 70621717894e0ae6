"""Engines as files, told without a GPU: whether each is an engine at all, and the one that the manifest describes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from msan_export.acceptance.verdict import Check
from msan_runtime.engines.building import Flavour, import_flavour, silent_logger
from msan_runtime.errors import BundleError, MissingExtraError
from msan_runtime.manifest import EngineEntry, Manifest, read_checked

__all__ = ["engine_checks"]

DAMAGED_BIT = 32
"""Of TensorRT-RTX's EngineInvalidityDiagnostics; the one of them that it sets without a GPU."""

KNOWN_LAYOUT = b"vtrt" + bytes(4) + (2).to_bytes(8, "little")
SIZE_AT = 16
"""As engines of TensorRT-RTX 1.7 begin: it is not documented, so that another beginning is taken as it is."""


def engine_checks(folder: Path, manifest: Manifest, changed: Collection[str]) -> Iterator[Check]:
    """A check for each engine not among the ``changed``; of another release than the one here, it is not run."""
    for entry in manifest.engines:
        beside = f"{entry.path}.json"
        if not {entry.path, beside}.intersection(changed):
            described = any(file.path == beside for file in manifest.files)
            wrong = _damage(folder / entry.path, entry) or (_dissent(folder, manifest, entry) if described else "")
            other = "" if wrong else _other_release(entry)
            detail = wrong or other or f"of {entry.flavour} {entry.flavour_version}"
            passed = False if wrong else None if other else True
            yield Check(section="files", subject=entry.path, quantity="engine", passed=passed, detail=detail)


def _damage(path: Path, entry: EngineEntry) -> str:
    trt = _library(entry)
    if trt is None or entry.flavour != "tensorrt-rtx":
        return ""
    runtime = trt.Runtime(silent_logger(trt))
    with path.open("rb") as file:
        header = file.read(runtime.engine_header_size)
    _, bits = runtime.get_engine_validity(header)
    if int(bits) & DAMAGED_BIT:
        return "it is damaged or no TensorRT-RTX engine: deploy the checkpoint again"
    size_bytes, said_bytes = path.stat().st_size, _said_bytes(header)
    if said_bytes not in (None, size_bytes):
        return f"it has {size_bytes} bytes, its header says {said_bytes}: deploy the checkpoint again"
    return ""


def _said_bytes(header: bytes) -> int | None:
    """The engine's size by its header, which TensorRT-RTX heeds on a GPU alone; ``None`` of a layout not known."""
    if not header.startswith(KNOWN_LAYOUT) or len(header) < SIZE_AT + 8:
        return None
    return int.from_bytes(header[SIZE_AT : SIZE_AT + 8], "little")


def _dissent(folder: Path, manifest: Manifest, entry: EngineEntry) -> str:
    """What the file that was written beside the engine says otherwise than the manifest."""
    beside = f"{entry.path}.json"
    try:
        said = json.loads(read_checked(folder, manifest.file(beside)))
        told = json.loads(json.dumps(asdict(entry)))
        other = [name for name, value in told.items() if said.get(name) != value]
    except (BundleError, ValueError, AttributeError, RecursionError):
        return f"{beside} cannot be read: deploy the checkpoint again"
    return f"{beside} says {other[0]} {said.get(other[0])}, the manifest {told[other[0]]}" if other else ""


def _other_release(entry: EngineEntry) -> str:
    trt = _library(entry)
    if trt is None or _release(trt.__version__) == _release(entry.flavour_version):
        return ""
    return (
        f"{entry.flavour} {entry.flavour_version} built it, this is {trt.__version__}: "
        "msan deblur builds it again from its graph"
    )


def _library(entry: EngineEntry) -> Any:
    try:
        return import_flavour(cast(Flavour, entry.flavour))
    except (MissingExtraError, ImportError, OSError):
        return None


def _release(version: str) -> str:
    return ".".join(version.split(".")[:3])
