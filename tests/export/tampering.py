"""What careless tools do to a bundle: change a weight, and make the manifest agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from msan_export.acceptance.verdict import ParityReport
from msan_runtime.manifest import BundleFile, load_manifest, save_manifest

__all__ = ["change_initializer", "failures", "graph_file", "rehash", "relabel_engine"]


def graph_file(bundle: Path, precision: str) -> Path:
    return next(bundle.glob(f"*.{precision}.onnx"))


def change_initializer(path: Path, part: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the first initializer whose name holds ``part``."""
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if part in tensor.name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def rehash(bundle: Path, path: Path) -> None:
    """Make the manifest agree with a changed file."""
    manifest = load_manifest(bundle)
    data = path.read_bytes()
    entry = BundleFile(path=path.name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = tuple(entry if file.path == path.name else file for file in manifest.files)
    save_manifest(replace(manifest, files=files), bundle)


def failures(report: ParityReport) -> set[tuple[str, str]]:
    """Subject, without the network's name, and quantity of every check that failed."""
    return {(check.subject.split(".", 1)[-1], check.quantity) for check in report.checks if check.passed is False}


def relabel_engine(bundle: Path, **changes: object) -> None:
    """Say something else of the engine, in the manifest and in the file beside it."""
    manifest = load_manifest(bundle)
    (entry,) = manifest.engines
    changed = replace(entry, **changes)
    save_manifest(replace(manifest, engines=(changed,)), bundle)
    beside = bundle / f"{entry.path}.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **asdict(changed)}))
    rehash(bundle, beside)
