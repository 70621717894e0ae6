"""The files of a bundle: the checkpoint that they were made from, their hashes, and every weight in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from msan.checkpoint import Checkpoint
from msan.network import MsanNetwork
from msan_export.acceptance.verdict import Check
from msan_export.graph import DeployableMsan
from msan_runtime.errors import BundleError
from msan_runtime.manifest import GraphEntry, Manifest, read_checked

__all__ = ["hash_checks", "origin_check", "weights_check"]

Found = Mapping[str, np.ndarray]


def origin_check(checkpoint: Checkpoint, manifest: Manifest) -> Check:
    """Whether the bundle is of a network of this form; another file of the same form is told."""
    same = manifest.provenance.get("checkpoint_sha256") == checkpoint.sha256
    spec = dict(manifest.spec) == checkpoint.spec.to_dict()
    detail = "made from this checkpoint" if same else f"made from another file than {checkpoint.path.name}"
    return _check("manifest", "origin", spec, detail if spec else "another spec")


def hash_checks(folder: Path, manifest: Manifest) -> Iterator[Check]:
    """Whether each file is the one that the manifest names."""
    for file in manifest.files:
        try:
            read_checked(folder, file)
        except BundleError as error:
            yield _check(file.path, "hash", passed=False, detail=str(error))
        else:
            yield _check(file.path, "hash", passed=True)


def weights_check(path: Path, entry: GraphEntry, network: MsanNetwork) -> Check:
    """Whether every weight in the graph is the checkpoint's, to the bit, after folding and casting."""
    try:
        initializers = onnx.load(path).graph.initializer
        found = {tensor.name.removesuffix("_fp16"): numpy_helper.to_array(tensor) for tensor in initializers}
    except Exception as error:  # a damaged file raises whatever protobuf or onnx trips over
        return _check(entry.path, "weights", passed=False, detail=f"cannot be read as ONNX ({type(error).__name__})")
    expected = {name: tensor.numpy() for name, tensor in DeployableMsan(network, entry.io).state_dict().items()}
    quantized = {name for name in expected if f"{name}_{entry.precision}" in found}
    # Biases of quantised convolutions carry the correction of what quantisation shifts.
    corrected = {f"{name.removesuffix('.weight')}.bias" for name in quantized}
    plain = {name: values for name, values in expected.items() if name not in quantized | corrected}
    kind = np.float32 if entry.precision == "fp32" else np.float16
    different = [name for name, values in plain.items() if not _same_weight(found.get(name), name, values, kind)]
    different += [name for name in sorted(quantized) if not _near_weight(found, name, entry.precision, expected[name])]
    if different:
        return _check(entry.path, "weights", passed=False, detail=f"{len(different)} differ, first {different[0]}")
    told = f", {len(quantized)} of them to half a step of {entry.precision}" if quantized else ""
    return _check(entry.path, "weights", passed=True, detail=f"{len(expected) - len(corrected)} tensors equal{told}")


def _check(subject: str, quantity: str, passed: bool, detail: str = "") -> Check:
    return Check(section="files", subject=subject, quantity=quantity, passed=passed, detail=detail)


def _near_weight(found: Found, name: str, kind: str, expected: np.ndarray) -> bool:
    """Whether a quantised weight is the expected one to half a step of its channel; of FP8 half of 1/8 of its value."""
    scale = found[f"{name}_{kind}_scale"].astype(np.float64).reshape(-1, *[1] * (expected.ndim - 1))
    error = np.abs(found[f"{name}_{kind}"].astype(np.float64) * scale - expected)
    half_step = scale / 2 if kind == "int8" else np.maximum(np.abs(expected) / 16, scale * 2.0**-10)
    return bool((error <= half_step * 1.001).all())


def _same_weight(found: np.ndarray | None, name: str, expected: np.ndarray, kind: type[np.floating]) -> bool:
    """Whether a graph holds ``expected`` as ``kind``. The exporter leaves out biases of zeros."""
    if found is None:
        return name.endswith(".bias") and not expected.any()
    return np.array_equal(found, expected.astype(kind))
