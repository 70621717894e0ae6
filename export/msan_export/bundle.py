"""Bundles: a checkpoint exported, built, verified and put into a folder, all or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msan_calib.calibrate import CalibratedGraph, CalibrationOptions, calibrate
from msan_calib.files import finished_graph, half_graph
from msan_calib.network import network_of
from msan_calib.report import calibration_body
from msan_calib.samples import SampleSet
from msan_export.acceptance.reference import Reference
from msan_export.acceptance.thresholds import read_thresholds
from msan_export.acceptance.tile_effect import tile_effect
from msan_export.acceptance.verdict import Case, ParityReport
from msan_export.acceptance.verify import QUICK, verify_bundle
from msan_export.artifact import OPSET, OnnxArtifact, save_onnx
from msan_export.engine import ENGINE_SUFFIX, EngineSpec, OnPhase, build_engine, engine_entry, engine_json
from msan_export.foreign import ForeignNetwork
from msan_export.onnx import float16_from_float32, onnx_from_checkpoint
from msan_export.recipe import Recipe, git_commit, recipe_of
from msan_export.report.document import parity_json
from msan_export.report.page import report_html
from msan_export.self_test import write_self_test
from msan_export.source import Source
from msan_export.versions import TOOLS
from msan_runtime.atomic import replacing_folder, write_bytes, write_text
from msan_runtime.attention import DEFAULT_ATTENTION, Attention
from msan_runtime.contract import CONTRACT_VERSION
from msan_runtime.errors import BundleError, CheckFailedError
from msan_runtime.machine import installed_versions
from msan_runtime.manifest import (
    MANIFEST_NAME,
    BundleFile,
    EngineEntry,
    GraphEntry,
    Manifest,
    describe_file,
    read_manifest,
    save_manifest,
)
from msan_runtime.signature import sign_manifest
from msan_runtime.strictjson import strict_json

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Calibration", "Deployment", "deploy"]

CALIBRATION_NAME = "calibration.json"

REPORT_EXHIBITS, REPORT_BYTES = 3, 200_000
"""A bundle's own page is small; `msan verify` writes a whole one."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the types of a bundle's graphs are decided on."""

    samples: SampleSet
    options: CalibrationOptions = field(default_factory=CalibrationOptions)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A finished bundle: its folder, manifest and verdict."""

    folder: Path
    manifest: Manifest
    report: ParityReport


def deploy(
    checkpoint: Source,
    folder: Path,
    spec: EngineSpec,
    cases: Sequence[Case],
    *,
    attention: Attention = DEFAULT_ATTENTION,
    calibration: Calibration | None = None,
    provenance: Mapping[str, str] | None = None,
    signing_key: Path | None = None,
    on_step: Callable[[str], None] | None = None,
    on_phase: OnPhase | None = None,
) -> Deployment:
    """Export, build and verify ``checkpoint``; put the bundle at ``folder`` if it passes.

    Args:
        checkpoint: what to deploy.
        folder: of the bundle; an older bundle there is replaced, anything else is left alone.
        spec: of the engine.
        cases: pictures to verify on.
        attention: of every graph and of the engine.
        calibration: what to calibrate on, and whether the engine is FP16, INT8 or FP8. If left out, the FP16 graph
            keeps FP32 by its form alone, without samples.
        provenance: more lines for the manifest.
        signing_key: PEM file of an Ed25519 private key; the bundle is then signed.
        on_step: told of each step in words.
        on_phase: told of the engine build's progress.

    Raises:
        BundleError: if ``folder`` is not a bundle and not empty, or cannot be written.
        CheckFailedError: if the bundle does not pass; ``FOLDER.parity.json`` then says where. Or if calibration
            refuses.
    """
    say = on_step or (lambda _: None)
    with _staging(folder) as stage:
        graphs, decided = _write_graphs(checkpoint, attention, calibration, stage, say)
        precision = "fp16" if calibration is None else calibration.options.precision
        say(f"building a {spec.flavour} engine for {', '.join(c.sm for c in spec.capabilities)}")
        source = next(graph for graph in graphs if graph.precision == precision)
        engine = build_engine((stage / source.path).read_bytes(), spec, precision, on_phase=on_phase)
        entry = engine_entry(engine, f"{checkpoint.spec.name}.{ENGINE_SUFFIX[spec.flavour]}", source.path)
        write_bytes(stage / entry.path, engine.data)
        write_text(stage / f"{entry.path}.json", engine_json(engine, entry))
        recipe = recipe_of(
            spec,
            attention,
            None if calibration is None else calibration.options,
            None if calibration is None else calibration.samples,
            checkpoint.arch if isinstance(checkpoint, ForeignNetwork) else None,
        )
        measured = {**decided, **_tiles(checkpoint, attention, cases[0], say)}
        told = {**measured, **_origin(recipe, checkpoint), **(provenance or {})}
        test = write_self_test(checkpoint, stage, spec.profile, attention)
        manifest = _manifest(checkpoint, stage, graphs, entry, told)
        files = (*manifest.files, describe_file(stage, test.blurred), describe_file(stage, test.deblurred))
        manifest = replace(manifest, attention=str(attention), self_test=test, files=files, recipe=recipe.to_dict())
        save_manifest(manifest, stage)
        say(f"verifying against PyTorch on {len(cases)} pictures")
        report = _named(verify_bundle(checkpoint, stage, cases, QUICK), folder)
        if not report.passed:
            raise _refused(report, folder)
        reports = _write_reports(report, stage)
        verified = {**manifest.provenance, **_verified(report)}
        manifest = replace(manifest, files=(*manifest.files, *reports), provenance=verified)
        save_manifest(manifest, stage)
        if signing_key is not None:
            sign_manifest(read_manifest(stage), signing_key, stage)
    return Deployment(folder=folder, manifest=manifest, report=report)


def _write_graphs(
    checkpoint: Source,
    attention: Attention,
    calibration: Calibration | None,
    stage: Path,
    say: Callable[[str], None],
) -> tuple[tuple[GraphEntry, ...], Mapping[str, str]]:
    """Write every graph; give their entries, and what calibration decided, for the manifest."""
    name = checkpoint.spec.name
    say(f"exporting {name} to ONNX, opset {OPSET}, {attention} attention")
    fp32 = onnx_from_checkpoint(checkpoint, io="uint8", attention=attention)
    float32 = onnx_from_checkpoint(checkpoint, io="float32", attention=attention)
    half = float16_from_float32(fp32)
    quantized: list[OnnxArtifact] = []
    decided: dict[str, str] = {}
    if calibration is not None:
        result = calibrate(network_of(fp32, name), calibration.samples, calibration.options, say=say)
        half = half_graph(result)
        decided = _decision(result)
        write_text(stage / CALIBRATION_NAME, strict_json(calibration_body(result, source=f"{name}.fp32.onnx")))
        if result.options.precision != "fp16":
            path = stage / f"{name}.{result.options.precision}.onnx"
            quantized.append(save_onnx(finished_graph(result), path, precision=result.options.precision, io="uint8"))
    artifacts = (
        *quantized,
        save_onnx(half, stage / f"{name}.fp16.onnx", precision="fp16", io="uint8"),
        save_onnx(fp32, stage / f"{name}.fp32.onnx", precision="fp32", io="uint8"),
        # For pictures of more than 8 bits.
        save_onnx(float32, stage / f"{name}.fp32.float.onnx", precision="fp32", io="float32"),
    )
    entries = (GraphEntry(path=a.path.name, precision=a.precision, io=a.io, opset=a.opset) for a in artifacts)
    return tuple(entries), decided


def _decision(result: CalibratedGraph) -> dict[str, str]:
    """What calibration decided, in the words of a manifest; ``calibration.json`` has the rest."""
    islands = [island.node for island in result.half.islands if island.kind != "form"]
    told = {
        "calibration": CALIBRATION_NAME,
        "calibration_samples_sha256": result.samples.sha256,
        "fp32_islands": ", ".join(islands) or "none but by form",
        "fp16_psnr_db": f"{result.half.quality.worst_db:.1f}",
    }
    if result.choice is not None:
        told["quantized"] = (
            f"{len(result.quantized)} convolutions, {result.choice.point.flops_share:.1%} of operations, "
            f"{result.choice.point.loss_db:.4f} dB lost of {result.options.budget_db:g}"
        )
    return told


def _tiles(checkpoint: Source, attention: Attention, case: Case, say: Callable[[str], None]) -> dict[str, str]:
    """How far another maker's network in tiles is from itself whole, for the manifest; a warning if it can be seen."""
    if not isinstance(checkpoint, ForeignNetwork):
        return {}
    effect = tile_effect(Reference(checkpoint, attention), case.picture)
    if not effect.within(read_thresholds().uint8):
        say(f"warning: tiles change this network's pictures: {effect}. See docs/other-networks.md, Tiles")
    return {"tiles": str(effect)}


def _origin(recipe: Recipe, checkpoint: Source) -> dict[str, str]:
    """Which source made it, and the command that makes it again."""
    commit = git_commit()
    return {"reproduce": recipe.command(checkpoint.path.name), **({} if commit is None else {"git_commit": commit})}


def _named(report: ParityReport, folder: Path) -> ParityReport:
    """The report of the bundle that is staged, under the name that it will have."""
    return replace(report, settings=replace(report.settings, bundle=folder.name, manifest_sha256=None))


def _write_reports(report: ParityReport, stage: Path) -> tuple[BundleFile, ...]:
    """Write the figures, and a small page of them, into the bundle."""
    write_text(stage / "parity.json", parity_json(report))
    write_text(stage / "report.html", report_html(report, exhibits=REPORT_EXHIBITS, budget_bytes=REPORT_BYTES))
    return describe_file(stage, "parity.json"), describe_file(stage, "report.html")


def _verified(report: ParityReport) -> dict[str, str]:
    """What verification came to, and the bounds on saved pictures; ``parity.json`` has every figure and its bound."""
    figures = [check for check in report.checks if check.psnr_db is not None and check.quantity == "uint8"]
    worst = min((check.psnr_db or 0.0 for check in figures), default=math.nan)
    passed = sum(check.passed is True for check in report.checks)
    bounds = report.settings.thresholds
    kinds = (("FP32 and FP16", bounds.uint8), ("INT8 and FP8", bounds.quantized))
    told = "; ".join(f"{kind} ≤ {bound.max_difference:g} levels, ≥ {bound.psnr_db:g} dB" for kind, bound in kinds)
    return {
        "verified": f"{passed} checks passed, saved pictures at least {worst:.1f} dB from PyTorch FP32",
        "thresholds": told,
    }


def _manifest(
    checkpoint: Source,
    stage: Path,
    graphs: tuple[GraphEntry, ...],
    engine: EngineEntry,
    provenance: Mapping[str, str],
) -> Manifest:
    calibration = (CALIBRATION_NAME,) if (stage / CALIBRATION_NAME).exists() else ()
    paths = (*(graph.path for graph in graphs), engine.path, f"{engine.path}.json", *calibration)
    return Manifest(
        name=checkpoint.spec.name,
        spec=checkpoint.spec.to_dict(),
        contract_version=CONTRACT_VERSION,
        graphs=graphs,
        engines=(engine,),
        files=tuple(describe_file(stage, path) for path in paths),
        versions=installed_versions(TOOLS),
        provenance={
            "checkpoint": checkpoint.path.name,
            "checkpoint_sha256": checkpoint.sha256,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **provenance,
        },
    )


def _refused(report: ParityReport, folder: Path) -> CheckFailedError:
    path = folder.with_name(f"{folder.name}.parity.json")
    write_text(path, parity_json(report))
    failed = [check for check in report.checks if check.passed is False]
    first = failed[0] if failed else None
    where = f"{first.subject}, {first.quantity} {first.case}".strip() if first else "no picture was compared"
    return CheckFailedError(f"the bundle was not written: {len(failed)} checks failed, first {where}. See {path}")


@contextmanager
def _staging(folder: Path) -> Generator[Path]:
    """A temporary folder beside ``folder`` that takes its place if the block ends well."""
    if folder.exists() and not _replaceable(folder):
        raise BundleError(f"{folder} exists and is not a bundle: choose another -o")
    with ExitStack() as stack:
        try:
            stage = stack.enter_context(replacing_folder(folder))
        except OSError as error:
            raise BundleError(f"cannot write to {folder.parent}: {error.strerror}. Choose another -o") from error
        yield stage


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST_NAME).is_file() or not any(folder.iterdir()))
