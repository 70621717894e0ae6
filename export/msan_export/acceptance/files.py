"""The files of a bundle: the checkpoint that they were made from, their hashes, and every weight in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from msan.checkpoint import Checkpoint
from msan_export.acceptance.figures import differences
from msan_export.acceptance.reference import Reference, padded
from msan_export.acceptance.thresholds import Threshold
from msan_export.acceptance.verdict import Check
from msan_export.artifact import OnnxError
from msan_export.onnx import onnx_from_checkpoint
from msan_export.source import Source, deployable
from msan_runtime.attention import Attention
from msan_runtime.bundle import Bundle
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, Io
from msan_runtime.errors import BundleError
from msan_runtime.manifest import GraphEntry, Manifest, read_checked
from msan_runtime.self_test import self_test_pictures

__all__ = [
    "UNREADABLE",
    "Expected",
    "expected_weights",
    "hash_checks",
    "origin_check",
    "self_test_check",
    "weights_check",
]

Found = Mapping[str, np.ndarray]

UNREADABLE = "cannot be read as ONNX"
"""How the detail of a weights check begins, whose graph is no graph."""


def origin_check(checkpoint: Source, manifest: Manifest) -> Check:
    """Whether the bundle is of a network of this form; another file of the same form is told."""
    same = manifest.provenance.get("checkpoint_sha256") == checkpoint.sha256
    spec = dict(manifest.spec) == checkpoint.spec.to_dict()
    detail = "made from this checkpoint" if same else f"made from another file than {checkpoint.path.name}"
    return _check("manifest", "origin", spec, detail if spec else "another spec")


def self_test_check(bundle: Bundle, reference: Reference, bound: Threshold) -> Check:
    """Whether the picture that every backend must give before it is used is the network's; an older bundle has none."""
    test = bundle.manifest.self_test
    if test is None:
        detail = "the bundle is of schema 1 and has none: backends are used unchecked. Deploy it again"
        return _check("manifest", "self-test", None, detail)
    try:
        blurred, deblurred = self_test_pictures(bundle, test)
        given = reference.outputs(padded(blurred[0]))[OUTPUT_NAME]
    except BundleError as error:
        return _check("manifest", "self-test", passed=False, detail=str(error))
    height, width = deblurred.shape[1:3]
    worst, psnr_db = differences(given[:, :height, :width], deblurred, 255.0)
    told = "" if bound.allows(worst, psnr_db) else f"its picture is not the network's: {worst:g} levels off"
    return _check("manifest", "self-test", not told, told)


def hash_checks(folder: Path, manifest: Manifest) -> Iterator[Check]:
    """Whether each file is the one that the manifest names."""
    for file in manifest.files:
        try:
            read_checked(folder, file)
        except BundleError as error:
            yield _check(file.path, "hash", passed=False, detail=str(error))
        else:
            yield _check(file.path, "hash", passed=True)


def weights_check(path: Path, entry: GraphEntry, expected: Expected) -> Check:
    """Whether every weight in the graph is the checkpoint's, to the bit, after folding and casting.

    Which nodes of a graph below FP32 stay FP32 is the graph's own choice: a weight is compared in each type that it is
    held in.
    """
    try:
        graph = onnx.load(path).graph
        if INPUT_NAME not in {one.name for one in graph.input} or OUTPUT_NAME not in {one.name for one in graph.output}:
            raise OnnxError(f"it has no {INPUT_NAME} and {OUTPUT_NAME}")
        found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:  # a damaged file raises whatever protobuf or onnx trips over
        return _check(entry.path, "weights", passed=False, detail=f"{UNREADABLE} ({type(error).__name__})")
    weights = expected.weights
    quantized = {name for name in weights if entry.precision != "fp16" and f"{name}_{entry.precision}" in found}
    # Biases of quantised convolutions carry the correction of what quantisation shifts.
    corrected = {expected.biases[name] for name in quantized if name in expected.biases}
    plain = {name: values for name, values in weights.items() if name not in quantized | corrected}
    different = [name for name, values in plain.items() if not _same_weight(_held(found, name, entry), name, values)]
    different += [name for name in sorted(quantized) if not _near_weight(found, name, entry.precision, weights[name])]
    if different:
        return _check(entry.path, "weights", passed=False, detail=f"{len(different)} differ, first {different[0]}")
    told = f", {len(quantized)} of them to half a step of {entry.precision}" if quantized else ""
    return _check(entry.path, "weights", passed=True, detail=f"{len(weights) - len(corrected)} tensors equal{told}")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The weights that a graph must hold, FP32.

    Attributes:
        weights: by the names that they have in a graph.
        biases: of each convolution's weight the name of its bias.
    """

    weights: Found
    biases: Mapping[str, str]


def expected_weights(checkpoint: Source, io: Io, attention: Attention) -> Expected:
    """What a graph of ``io`` pictures must hold.

    Of MSAN, the checkpoint's own tensors: no exporter is asked. Networks of other makers have parts that an exporter
    joins, such as a convolution with the normalisation behind it: of those, what a fresh export holds.
    """
    if isinstance(checkpoint, Checkpoint):
        state = deployable(checkpoint, io, attention).state_dict()
        weights = {name: tensor.numpy() for name, tensor in state.items()}
        biases = {name: f"{name.removesuffix('.weight')}.bias" for name in weights if name.endswith(".weight")}
        return Expected(weights=weights, biases=biases)
    graph = onnx_from_checkpoint(checkpoint, io=io, attention=attention).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: values for name, values in arrays.items() if values.dtype == np.float32 and values.size > 1}
    heavy = (node for node in graph.node if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2)
    return Expected(weights=weights, biases={node.input[1]: node.input[2] for node in heavy})


def _check(subject: str, quantity: str, passed: bool | None, detail: str = "") -> Check:
    return Check(section="files", subject=subject, quantity=quantity, passed=passed, detail=detail)


def _near_weight(found: Found, name: str, kind: str, expected: np.ndarray) -> bool:
    """Whether a quantised weight is the expected one to half a step of its channel; of FP8 half of 1/8 of its value."""
    scale = found[f"{name}_{kind}_scale"].astype(np.float64).reshape(-1, *[1] * (expected.ndim - 1))
    error = np.abs(found[f"{name}_{kind}"].astype(np.float64) * scale - expected)
    half_step = scale / 2 if kind == "int8" else np.maximum(np.abs(expected) / 16, scale * 2.0**-10)
    return bool((error <= half_step * 1.001).all())


def _held(found: Found, name: str, entry: GraphEntry) -> list[tuple[np.ndarray, type[np.floating]]]:
    """A weight as the graph holds it, and its type there: FP32, below that FP16, or both if nodes of both take it."""
    kinds = {name: np.float32} if entry.precision == "fp32" else {name: np.float32, f"{name}_fp16": np.float16}
    return [(found[one], kind) for one, kind in kinds.items() if one in found]


def _same_weight(held: Sequence[tuple[np.ndarray, type[np.floating]]], name: str, expected: np.ndarray) -> bool:
    """Whether each of ``held`` is ``expected`` in its type. The exporter leaves out biases of zeros."""
    if not held:
        return name.endswith(".bias") and not expected.any()
    return all(values.dtype == kind and np.array_equal(values, expected.astype(kind)) for values, kind in held)
