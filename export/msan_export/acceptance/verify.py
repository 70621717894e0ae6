"""The acceptance test of a bundle: everything in it against the network of its checkpoint in PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from msan.evaluation.sets import EvaluationSet
from msan_export.acceptance.as_run import backend_checks
from msan_export.acceptance.built_types import type_checks
from msan_export.acceptance.cases import TILE_PX, TILED_PX, shape_cases, sized
from msan_export.acceptance.engine_files import engine_checks
from msan_export.acceptance.files import (
    UNREADABLE,
    expected_weights,
    hash_checks,
    origin_check,
    self_test_check,
    weights_check,
)
from msan_export.acceptance.nodewise import nodewise_checks
from msan_export.acceptance.pairs import check_of, pair_scores
from msan_export.acceptance.pictures import Gallery
from msan_export.acceptance.reference import Reference, ReferenceType
from msan_export.acceptance.runners import ComparedRunner, EngineRunner, GraphRunner
from msan_export.acceptance.steadiness import steadiness_checks
from msan_export.acceptance.tensors import tensor_checks
from msan_export.acceptance.thresholds import Thresholds, read_thresholds
from msan_export.acceptance.verdict import Case, Check, PairScores, ParityReport, Settings
from msan_export.source import Source
from msan_export.versions import TOOLS
from msan_runtime.attention import Attention
from msan_runtime.bundle import Bundle
from msan_runtime.contract import Io
from msan_runtime.engines.building import DEFAULT_PROFILE
from msan_runtime.errors import MsanError, SelfTestError
from msan_runtime.machine import describe_machine, memory_bytes
from msan_runtime.manifest import MANIFEST_NAME, EngineEntry, GraphEntry, load_manifest
from msan_runtime.memory import run_bytes
from msan_runtime.select import select_backend

__all__ = ["QUICK", "Scope", "verify_bundle"]

MEMORY_SHARE = 0.5
"""Of the machine's memory, that a run on a whole picture may take."""

Graphs = list[tuple[GraphEntry, onnx.ModelProto]]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How much is compared, and by which bounds.

    Attributes:
        thresholds: all bounds.
        reference: type that PyTorch computes in.
        shapes: whether a picture of the smallest, typical and largest size of the engine's profile is compared, too.
        backends: whether the bundle is also run on every backend of this machine, in tiles as well.
        pairs: data sets of blurred and sharp pictures that it is scored on before and after conversion.
    """

    thresholds: Thresholds = field(default_factory=read_thresholds)
    reference: ReferenceType = "float32"
    shapes: bool = True
    backends: bool = True
    pairs: tuple[EvaluationSet, ...] = ()


QUICK = Scope(shapes=False, backends=False)
"""The files of the bundle on the given pictures alone."""


def verify_bundle(
    checkpoint: Source,
    folder: Path,
    cases: Sequence[Case],
    scope: Scope | None = None,
    *,
    on_step: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare everything in the bundle at ``folder`` with ``checkpoint`` on the given pictures.

    A file whose hash is not the manifest's is a failed check, and is not run: it is not what was deployed, and
    engines are executable content. A graph's weights are still compared, to tell what changed.

    Args:
        checkpoint: of the reference.
        folder: the bundle's.
        cases: pictures, at least one.
        scope: how much is compared; everything but pairs if left out.
        on_step: told of each step in words.

    Raises:
        BundleError: if there is no readable bundle.
        MsanError: for a pair that cannot be read.
    """
    one = _Verification(checkpoint, folder, cases, scope or Scope(), on_step or (lambda _: None))
    one.run()
    return ParityReport(
        settings=one.settings(), checks=tuple(one.found), worst=tuple(one.gallery.worst), pairs=tuple(one.pairs)
    )


class _Verification:
    """One verification: what all its parts share.

    Attributes:
        found: every check so far.
    """

    def __init__(
        self, checkpoint: Source, folder: Path, cases: Sequence[Case], scope: Scope, say: Callable[[str], None]
    ) -> None:
        self.checkpoint, self.folder, self.cases, self.scope, self.say = checkpoint, folder, cases, scope, say
        self.bounds = scope.thresholds
        self.manifest = load_manifest(folder)
        self.attention = Attention.parse(self.manifest.attention)
        self.reference = Reference(checkpoint, self.attention, scope.reference)
        self.gallery = Gallery(self.bounds)
        self.found: list[Check] = []
        self.pairs: list[PairScores] = []

    def run(self) -> None:
        """Make every check."""
        graphs = self._files()
        self.found += type_checks(graphs, self.manifest.engines)
        self._tensors(graphs)
        self.say("running every graph twice")
        self.found += steadiness_checks(graphs, self.cases[0], self.bounds)
        if not self._changed():
            bundle = Bundle(folder=self.folder, manifest=self.manifest)
            self._as_run(bundle)
            self._pairs(bundle)
        self.found += self.gallery.scans()
        self.say("running graphs node by node")
        off = {check.subject for check in self.found if check.passed is False}
        self.found += nodewise_checks(self.checkpoint, graphs, self.reference, self.cases, self.bounds, off=off)

    def settings(self) -> Settings:
        """What was compared, and how."""
        return Settings(
            bundle=self.folder.resolve().name,
            manifest_sha256=hashlib.sha256((self.folder / MANIFEST_NAME).read_bytes()).hexdigest(),
            checkpoint=self.checkpoint.path.name,
            checkpoint_sha256=self.checkpoint.sha256,
            reference=self.reference.words,
            thresholds=self.bounds,
            machine=describe_machine(TOOLS),
            provenance=self.manifest.provenance,
        )

    def _changed(self) -> set[str]:
        return {check.subject for check in self.found if check.quantity == "hash" and check.passed is False}

    def _files(self) -> Graphs:
        """Check the files; give the graphs that are those of the manifest."""
        self.found.append(origin_check(self.checkpoint, self.manifest))
        bundle = Bundle(folder=self.folder, manifest=self.manifest)
        self.found.append(self_test_check(bundle, self.reference, self.bounds.of_pictures("fp32")))
        self.found += hash_checks(self.folder, self.manifest)
        self.found += engine_checks(self.folder, self.manifest, self._changed())
        if not self.manifest.graphs:
            detail = "the bundle holds no graph: nothing can be compared"
            self.found.append(
                Check(section="files", subject="manifest", quantity="graphs", passed=False, detail=detail)
            )
        weights = self._weights()
        self.found += weights
        unusable = self._changed() | {check.subject for check in weights if check.detail.startswith(UNREADABLE)}
        return [
            (entry, onnx.load(self.folder / entry.path)) for entry in self.manifest.graphs if entry.path not in unusable
        ]

    def _weights(self) -> list[Check]:
        ios: set[Io] = {entry.io for entry in self.manifest.graphs}
        expected = {io: expected_weights(self.checkpoint, io, self.attention) for io in ios}
        return [weights_check(self.folder / entry.path, entry, expected[entry.io]) for entry in self.manifest.graphs]

    def _tensors(self, graphs: Graphs) -> None:
        """Compare graphs and engines, picture by picture."""
        with ExitStack() as opened:
            runners = list(self._runners(graphs, opened))
            for case in self._cases():
                self.say(f"comparing {case.name}")
                if self._fits(case):
                    self.found += tensor_checks(runners, self.reference, case, self.bounds, self.gallery)

    def _runners(self, graphs: Graphs, opened: ExitStack) -> Iterator[ComparedRunner]:
        """A runner for each graph and engine; a check where there can be none."""
        models = {entry.path: model for entry, model in graphs}
        for entry in self.manifest.graphs:
            if entry.path not in models:
                self._unrun(entry.path, None, "it was changed or cannot be read, so it is not run")
                continue
            try:
                yield GraphRunner(models[entry.path], entry)
            except MsanError as error:
                self._unrun(entry.path, False, str(error))
        for entry in self.manifest.engines:
            runner = self._engine_runner(entry, opened)
            if runner is not None:
                yield runner

    def _engine_runner(self, entry: EngineEntry, opened: ExitStack) -> EngineRunner | None:
        """A runner of an engine as it is; one that does not fit this machine is not run."""
        if self._changed():
            self._unrun(entry.path, None, "the bundle was changed, so it is not run")
            return None
        name = "rtx" if entry.flavour == "tensorrt-rtx" else "tensorrt"
        try:
            bundle = Bundle(folder=self.folder, manifest=self.manifest)
            backend = opened.enter_context(select_backend(bundle, name, rebuild=False).backend)
        except MsanError as error:
            self._unrun(entry.path, False if isinstance(error, SelfTestError) else None, str(error))
            return None
        return EngineRunner(backend, entry)

    def _unrun(self, subject: str, passed: bool | None, detail: str) -> None:
        self.found.append(Check(section="pictures", subject=subject, quantity="uint8", passed=passed, detail=detail))

    def _cases(self) -> list[Case]:
        return [*self.cases, *(self._shapes() if self.scope.shapes else ())]

    def _shapes(self) -> list[Case]:
        profile = self.manifest.engines[0].profile if self.manifest.engines else DEFAULT_PROFILE
        return shape_cases(profile, self.cases[0].picture)

    def _fits(self, case: Case) -> bool:
        """Whether this machine has the memory for the whole picture; if not, that is a check that was not run."""
        height, width = case.picture.shape[:2]
        needed, there = run_bytes(self.manifest, height * width), memory_bytes()
        if there is None or needed <= MEMORY_SHARE * there:
            return True
        detail = (
            f"whole, it takes {needed / 2**30:.1f} GiB, and this machine has {there / 2**30:.1f}: compared in tiles"
        )
        self.found.append(
            Check(section="tensors", subject="graphs", quantity="float", case=case.name, passed=None, detail=detail)
        )
        return False

    def _as_run(self, bundle: Bundle) -> None:
        if self.scope.backends:
            self.say("running the bundle on every backend of this machine")
            height, width = TILED_PX
            name = f"tiled {height}×{width} in {TILE_PX[0]}×{TILE_PX[1]}"
            tiled = Case(name=name, picture=sized(self.cases[0].picture, height, width), tile=TILE_PX)
            cases = [*self._cases(), tiled]
            self.found += backend_checks(bundle, cases, self.reference, self.bounds, self.gallery)

    def _pairs(self, bundle: Bundle) -> None:
        if self.scope.pairs:
            self.say("scoring pairs before and after conversion")
            for scores in pair_scores(bundle, self.scope.pairs, self.reference, self.bounds):
                if isinstance(scores, PairScores):
                    self.pairs.append(scores)
                self.found.append(check_of(scores) if isinstance(scores, PairScores) else scores)
