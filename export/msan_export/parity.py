"""Parity: every graph and engine of a bundle against the PyTorch network in FP32, through Polygraphy.

The reference is :class:`msan.network.MsanNetwork` itself, not the module that was exported.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan.network import MsanNetwork
from msan_export._polygraphy import BaseRunner, Comparator, IterationResult, OnnxrtRunner, TensorMetadata
from msan_export.graph import DeployableMsan
from msan_export.nodewise import nodewise_checks
from msan_export.steadiness import steadiness_checks
from msan_export.thresholds import Thresholds, read_thresholds
from msan_export.verdict import Case, Check, ParityReport
from msan_runtime.attention import Attention
from msan_runtime.backends import ort
from msan_runtime.backends.base import Backend
from msan_runtime.bundle import Bundle
from msan_runtime.contract import INPUT_NAME, OUTPUT_NAME, PictureArray, pad_to, round_up
from msan_runtime.errors import BackendError, BundleError, ContractError, MsanError
from msan_runtime.image import find_pictures, read_picture
from msan_runtime.manifest import EngineEntry, GraphEntry, Manifest, load_manifest, read_checked
from msan_runtime.select import select_backend

__all__ = ["Case", "Check", "ParityReport", "sample_cases", "verify_bundle"]

FLOAT_NAME = "deblurred_float"
"""Name under which the picture before rounding is compared: float32 in [0, 1], N×H×W×3."""

CASE_SIDE_PX = 640
"""Pictures are compared on their middle part of at most this height and width."""

SAMPLES = Path(__file__).parent / "samples"

FloatArray = npt.NDArray[np.float32]


def sample_cases(folder: Path | None = None) -> list[Case]:
    """The pictures of ``folder``, or the shipped samples: a square, an odd-sized and a tall one.

    Raises:
        BundleError: if the folder holds no picture.
        PictureError: for one that cannot be decoded.
    """
    where = SAMPLES if folder is None else folder
    if not where.is_dir():
        raise BundleError(f"no folder of pictures at {where}")
    files = find_pictures(where)
    if not files:
        raise BundleError(f"no JPEG, PNG, WebP or TIFF picture in {where} to verify on")
    return [_case(file) for file in files]


def verify_bundle(
    checkpoint: Checkpoint, folder: Path, cases: Sequence[Case], thresholds: Thresholds | None = None
) -> ParityReport:
    """Compare everything in the bundle at ``folder`` with ``checkpoint`` on the given pictures.

    ``thresholds`` are the shipped ones if left out.

    A file whose hash is not the manifest's is a failed check, and is not run: it is not what was
    deployed, and engines are executable content. A graph's weights are still compared, to tell what
    changed.

    Raises:
        BundleError: if there is no readable bundle.
    """
    bounds = thresholds or read_thresholds()
    manifest = load_manifest(folder)
    hashes = _hashes(folder, manifest)
    changed = {check.subject for check in hashes if not check.passed}
    network = network_from_checkpoint(checkpoint, Attention.parse(manifest.attention))
    checks = [_origin(checkpoint, manifest), *hashes]
    runners: list[Any] = [_TorchRunner(network)]
    for entry in manifest.graphs:
        checks.append(_weights(folder / entry.path, entry, network))
        make = None if entry.path in changed else partial(_graph_runner, folder, entry)
        _add(runners, checks, entry.path, make, "float" if entry.io == "float32" else "uint8")
    for entry in manifest.engines:
        _add(
            runners, checks, entry.path, None if changed else partial(_engine_runner, folder, manifest, entry), "uint8"
        )
    checks += _compare(runners, cases, bounds)
    graphs = [(entry, folder / entry.path) for entry in manifest.graphs if entry.path not in changed]
    readable = [(entry, onnx.load(path)) for entry, path in graphs]
    checks += steadiness_checks(readable, cases[0], bounds)
    off = {check.subject for check in checks if check.passed is False}
    checks += nodewise_checks(checkpoint, readable, network, cases, bounds, off=off)
    return ParityReport(bundle=folder.name, checkpoint_sha256=checkpoint.sha256, checks=tuple(checks))


def _add(
    runners: list[Any], checks: list[Check], subject: str, make: Callable[[], Any] | None, quantity: str = "uint8"
) -> None:
    """Add the runner that ``make`` gives, or a check that says why there is none."""
    if make is None:
        detail = "the bundle was changed, so it is not run"
        checks.append(Check(subject=subject, quantity=quantity, passed=None, detail=detail))
        return
    try:
        runners.append(make())
    except _NotHereError as error:
        checks.append(Check(subject=subject, quantity=quantity, passed=None, detail=str(error)))
    except MsanError as error:
        checks.append(Check(subject=subject, quantity=quantity, passed=False, detail=str(error)))


def _case(file: Path) -> Case:
    pixels = _centre(read_picture(file).pixels)
    return Case(name=f"{file.name} {pixels.shape[0]}×{pixels.shape[1]}", picture=pixels)


def _centre(picture: PictureArray) -> PictureArray:
    """The middle of a large picture: attention in PyTorch holds (pixels/64)² floats."""
    height, width = (min(side, CASE_SIDE_PX) for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def _origin(checkpoint: Checkpoint, manifest: Manifest) -> Check:
    same = manifest.provenance.get("checkpoint_sha256") == checkpoint.sha256
    spec = dict(manifest.spec) == checkpoint.spec.to_dict()
    detail = "made from this checkpoint" if same else f"made from another file than {checkpoint.path.name}"
    return Check(subject="manifest", quantity="origin", passed=spec, detail=detail if spec else "another spec")


def _hashes(folder: Path, manifest: Manifest) -> list[Check]:
    checks: list[Check] = []
    for file in manifest.files:
        try:
            read_checked(folder, file)
            checks.append(Check(subject=file.path, quantity="hash", passed=True))
        except BundleError as error:
            checks.append(Check(subject=file.path, quantity="hash", passed=False, detail=str(error)))
    return checks


def _weights(path: Path, entry: GraphEntry, network: MsanNetwork) -> Check:
    """Whether every weight in the graph is the checkpoint's, to the bit, after folding and casting."""
    try:
        initializers = onnx.load(path).graph.initializer
        found = {tensor.name.removesuffix("_fp16"): numpy_helper.to_array(tensor) for tensor in initializers}
    except Exception as error:  # a damaged file raises whatever protobuf or onnx trips over
        detail = f"cannot be read as ONNX ({type(error).__name__})"
        return Check(subject=entry.path, quantity="weights", passed=False, detail=detail)
    expected = {name: tensor.numpy() for name, tensor in DeployableMsan(network, entry.io).state_dict().items()}
    kind = np.float32 if entry.precision == "fp32" else np.float16
    quantized = {name for name in expected if f"{name}_{entry.precision}" in found}
    # Biases of quantised convolutions carry the correction of what quantisation shifts.
    corrected = {f"{name.removesuffix('.weight')}.bias" for name in quantized}
    different = [
        name
        for name, values in expected.items()
        if name not in quantized | corrected
        and not _same_weight(found.get(name), values, kind, optional=name.endswith(".bias"))
    ]
    different += [name for name in sorted(quantized) if not _near_weight(found, name, entry.precision, expected[name])]
    told = f", {len(quantized)} of them to half a step of {entry.precision}" if quantized else ""
    detail = f"{len(expected) - len(corrected)} tensors equal{told}"
    if different:
        detail = f"{len(different)} differ, first {different[0]}"
    return Check(subject=entry.path, quantity="weights", passed=not different, detail=detail)


def _near_weight(found: Mapping[str, np.ndarray], name: str, kind: str, expected: np.ndarray) -> bool:
    """Whether a quantised weight is the expected one to half a step of its channel; of FP8 half of 1/8 of its value."""
    scale = found[f"{name}_{kind}_scale"].astype(np.float64).reshape(-1, *[1] * (expected.ndim - 1))
    error = np.abs(found[f"{name}_{kind}"].astype(np.float64) * scale - expected)
    half_step = scale / 2 if kind == "int8" else np.maximum(np.abs(expected) / 16, scale * 2.0**-10)
    return bool((error <= half_step * 1.001).all())


def _same_weight(found: np.ndarray | None, expected: np.ndarray, kind: type[np.floating], *, optional: bool) -> bool:
    """Whether a graph holds ``expected`` as ``kind``. The exporter leaves out biases, ``optional``, of zeros."""
    if found is None:
        return optional and not expected.any()
    return np.array_equal(found, expected.astype(kind))


def _graph_runner(folder: Path, entry: GraphEntry) -> _GraphRunner | _FloatGraphRunner:
    model = onnx.load(folder / entry.path)
    if entry.io == "float32":
        return _FloatGraphRunner(ort.open_session(model.SerializeToString(), ort.PROVIDERS["ort-cpu"]), entry)
    return _GraphRunner(ort.open_session(_with_float_output(model), ort.PROVIDERS["ort-cpu"]), entry)


class _NotHereError(BackendError):
    """This machine cannot run an engine: no verdict on the engine."""


def _engine_runner(folder: Path, manifest: Manifest, entry: EngineEntry) -> _BackendRunner:
    name = "rtx" if entry.flavour == "tensorrt-rtx" else "tensorrt"
    try:
        selection = select_backend(Bundle(folder=folder, manifest=manifest), name)
    except BackendError as error:
        raise _NotHereError(str(error)) from error
    return _BackendRunner(selection.backend, entry)


def _with_float_output(model: onnx.ModelProto) -> bytes:
    """The uint8 graph with the picture before rounding (the Clip's result) as a second output."""
    makers = {name: node for node in model.graph.node for name in node.output}
    name = OUTPUT_NAME
    while name in makers and makers[name].op_type != "Clip":
        name = makers[name].input[0]
    if name not in makers:
        raise ContractError("the graph does not clamp its picture: it was not made by msan export")
    identity = onnx.helper.make_node("Identity", [name], [FLOAT_NAME], name="float_output")
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.node.append(identity)
    tapped.graph.output.append(onnx.helper.make_tensor_value_info(FLOAT_NAME, onnx.TensorProto.FLOAT, None))
    return tapped.SerializeToString()


def _compare(runners: Sequence[Any], cases: Sequence[Case], bounds: Thresholds) -> list[Check]:
    """Run all runners on all cases, each once, and compare the others with the first, the reference."""
    feeds = [{INPUT_NAME: _padded(case.picture)} for case in cases]
    reference = Comparator.run(runners[:1], data_loader=feeds)
    checks: list[Check] = []
    for runner in runners[1:]:
        recorder = _Recorder(runner.subject, runner.precision, cases, bounds)
        try:
            results = Comparator.run([runner], data_loader=feeds)
            Comparator.compare_accuracy([reference, results], compare_func=recorder)
            checks += recorder.checks
        except BackendError as error:
            checks.append(Check(subject=runner.subject, quantity="run", passed=False, detail=str(error)))
    return checks


def _padded(picture: PictureArray) -> PictureArray:
    height, width = picture.shape[:2]
    return np.ascontiguousarray(pad_to(picture, round_up(height), round_up(width))[None])


class _Recorder:
    """A Polygraphy compare function that holds each picture against its threshold and records a Check."""

    def __init__(self, subject: str, precision: str, cases: Sequence[Case], bounds: Thresholds) -> None:
        self.subject = subject
        self.precision = precision
        self.cases = cases
        self.bounds = bounds
        self.checks: list[Check] = []
        self._index = 0

    def __call__(self, reference: IterationResult, result: IterationResult) -> OrderedDict[str, bool]:
        case = self.cases[self._index]
        self._index += 1
        found = [self._check(name, np.asarray(reference[name]), np.asarray(result[name]), case) for name in result]
        self.checks += found
        return OrderedDict((check.quantity, bool(check.passed)) for check in found)

    def _check(self, name: str, reference: npt.NDArray[Any], result: npt.NDArray[Any], case: Case) -> Check:
        is_float = name == FLOAT_NAME
        # The float picture of an FP16 graph is checked for NaN only: its bounds are those of the saved picture.
        exact = is_float and self.precision == "fp32"
        threshold = self.bounds.float_fp32 if exact else self.bounds.of_pictures(self.precision)
        if is_float and self.precision != "fp32":
            reference, result = reference * np.float32(255), result * np.float32(255)
        worst, psnr_db = _differences(reference, result, threshold.peak)
        return Check(
            subject=self.subject,
            quantity="float" if is_float else "uint8",
            case=case.name,
            passed=threshold.allows(worst, psnr_db),
            max_difference=worst,
            psnr_db=psnr_db,
            threshold=threshold,
            detail="" if math.isfinite(worst) else "holds NaN or infinity",
        )


def _differences(reference: npt.NDArray[Any], result: npt.NDArray[Any], peak: float) -> tuple[float, float]:
    """Largest absolute difference, and PSNR in dB; both NaN if shapes differ or a value is not finite."""
    if reference.shape != result.shape:
        return math.nan, math.nan
    difference = result.astype(np.float64) - reference.astype(np.float64)
    if not np.isfinite(difference).all():
        return math.nan, math.nan
    error = float(np.mean(np.square(difference)))
    return float(np.abs(difference).max()), math.inf if error == 0 else 10 * math.log10(peak**2 / error)


class _PictureRunner(BaseRunner):
    """What our runners share: one picture batch in."""

    subject: str
    precision: str

    def get_input_metadata_impl(self) -> TensorMetadata:
        return TensorMetadata().add(INPUT_NAME, dtype=np.uint8, shape=(-1, -1, -1, 3))


class _TorchRunner(_PictureRunner):
    """The reference: the network of the checkpoint, in FP32, in PyTorch."""

    def __init__(self, network: MsanNetwork) -> None:
        super().__init__(prefix="pytorch-fp32")
        self.network = network

    def infer_impl(self, feed_dict: Mapping[str, PictureArray]) -> OrderedDict[str, npt.NDArray[Any]]:
        started = time.perf_counter()
        blurred = torch.from_numpy(feed_dict[INPUT_NAME]).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            picture = self.network(blurred).clamp(0, 1).permute(0, 2, 3, 1).contiguous()
        levels = (picture * 255).round().to(torch.uint8)
        self.inference_time = time.perf_counter() - started
        return OrderedDict([(OUTPUT_NAME, levels.numpy()), (FLOAT_NAME, picture.numpy())])


class _GraphRunner(OnnxrtRunner):
    """An ONNX graph of uint8 pictures on ONNX Runtime's CPU provider."""

    def __init__(self, session: Any, entry: GraphEntry) -> None:
        super().__init__(session, name=f"onnxruntime-{entry.precision}")
        self.subject = entry.path
        self.precision = entry.precision

    def infer_impl(self, feed_dict: Mapping[str, PictureArray]) -> OrderedDict[str, npt.NDArray[Any]]:
        try:
            return super().infer_impl(feed_dict)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime cannot run it: {ort.first_line(error)}") from error


class _FloatGraphRunner(_PictureRunner):
    """An ONNX graph of float32 pictures on ONNX Runtime's CPU provider, fed with the uint8 ones scaled."""

    def __init__(self, session: Any, entry: GraphEntry) -> None:
        super().__init__(prefix=f"onnxruntime-{entry.precision}-float")
        self.session = session
        self.subject = entry.path
        self.precision = entry.precision

    def infer_impl(self, feed_dict: Mapping[str, PictureArray]) -> OrderedDict[str, npt.NDArray[Any]]:
        started = time.perf_counter()
        try:
            outputs = self.session.run([OUTPUT_NAME], {INPUT_NAME: feed_dict[INPUT_NAME].astype(np.float32) / 255})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime cannot run it: {ort.first_line(error)}") from error
        self.inference_time = time.perf_counter() - started
        return OrderedDict([(FLOAT_NAME, outputs[0])])


class _BackendRunner(_PictureRunner):
    """An engine through the runtime's own backend: what users will run."""

    def __init__(self, backend: Backend, entry: EngineEntry) -> None:
        super().__init__(prefix=backend.name)
        self.backend = backend
        self.subject = entry.path
        self.precision = entry.precision

    def infer_impl(self, feed_dict: Mapping[str, PictureArray]) -> OrderedDict[str, npt.NDArray[Any]]:
        started = time.perf_counter()
        picture = self.backend.infer(feed_dict[INPUT_NAME])
        self.inference_time = time.perf_counter() - started
        return OrderedDict([(OUTPUT_NAME, picture)])

    def deactivate_impl(self) -> None:
        self.backend.close()
