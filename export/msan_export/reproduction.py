"""A bundle made again by its own recipe, and compared: graphs by hash, types by count, pictures by bounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from msan.checkpoint import find_checkpoint
from msan_calib.samples import choose_samples
from msan_export.acceptance.cases import sample_cases
from msan_export.bundle import Calibration, Deployment, deploy
from msan_export.foreign import LoaderName
from msan_export.recipe import Recipe, arch_options
from msan_export.source import Source, load_source
from msan_export.versions import TOOLS
from msan_runtime.bundle import Bundle, shipped_bundles
from msan_runtime.errors import BundleError
from msan_runtime.machine import installed_versions
from msan_runtime.manifest import Manifest

__all__ = ["Comparison", "Reproduction", "reproduce"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One thing that must be the same: what, whether it is, and how it differs."""

    subject: str
    same: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of making a bundle again.

    Attributes:
        comparisons: graphs, types and pictures.
        other_versions: tools whose release is another here, ``then → now``: what explains a difference.
    """

    comparisons: tuple[Comparison, ...]
    other_versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether everything is the same."""
        return all(comparison.same for comparison in self.comparisons)


def reproduce(
    bundle: Bundle,
    checkpoint: Path | None = None,
    samples: Path | None = None,
    *,
    arch: str | None = None,
    loader: LoaderName | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Reproduction:
    """Make ``bundle`` again in a temporary folder, and compare.

    Args:
        bundle: what to make again.
        checkpoint: its checkpoint; if left out, the shipped one or the file of that name beside the bundle or here.
        samples: folder that types were decided on; if left out, the shipped pairs.
        arch, loader: of a network of another maker. A manifest alone is not enough: a factory is code that is run.
        on_step: told of each step in words.

    Raises:
        BundleError: if the bundle does not say how it was made, or checkpoint or samples are others than its own.
        CheckFailedError: if what comes out does not pass its verification.
    """
    manifest = bundle.manifest
    recipe = Recipe.from_dict(manifest.recipe)
    if recipe.arch != (arch or loader):
        raise BundleError(_other_network(recipe, arch or loader))
    loaded = load_source(str(_checkpoint(bundle, checkpoint)), arch=arch, loader=loader)
    _check_same(bundle, loaded)
    calibration = _calibration(recipe, samples)
    with tempfile.TemporaryDirectory(prefix="msan-reproduce-") as folder:
        made = deploy(
            loaded,
            Path(folder) / manifest.name,
            recipe.engine,
            sample_cases(),
            attention=recipe.attention,
            calibration=calibration,
            on_step=on_step,
        )
        comparisons = tuple(_compared(manifest, made))
    return Reproduction(comparisons=comparisons, other_versions=_other_versions(manifest))


def _other_network(recipe: Recipe, given: str | None) -> str:
    """Why the network that was named is not the bundle's."""
    if recipe.arch is None:
        return f"the bundle is of MSAN: leave out {given}"
    ((option, name),) = arch_options(recipe.arch).items()
    return f"the bundle was made with --{option} {name}: give that, if you trust the code that it names"


def _checkpoint(bundle: Bundle, path: Path | None) -> Path:
    """The file of weights that the bundle was made from, by its name."""
    name = bundle.manifest.provenance.get("checkpoint", "")
    if path is None:
        shipped = [find_checkpoint(known) for known in shipped_bundles()]
        places = [*shipped, bundle.folder.parent / name, Path(name)]
        path = next((place for place in places if place.is_file() and place.name == name), None)
    if path is None:
        raise BundleError(f"the bundle was made from {name}, which is not here: give it with --checkpoint FILE")
    return path


def _check_same(bundle: Bundle, loaded: Source) -> None:
    wanted = bundle.manifest.provenance["checkpoint_sha256"]
    if loaded.sha256 != wanted:
        raise BundleError(
            f"{loaded.path} is not the checkpoint of the bundle: SHA-256 {loaded.sha256[:12]}…, the bundle's "
            f"{wanted[:12]}…. Give the right one with --checkpoint FILE"
        )


def _calibration(recipe: Recipe, folder: Path | None) -> Calibration | None:
    if recipe.calibration is None or recipe.samples is None:
        return None
    source, sampling, sha256 = recipe.samples
    if folder is None and source != "shipped":
        raise BundleError(f"types were decided on a folder {source!r}: give it with --samples DIR")
    chosen = choose_samples(folder, sampling)
    if chosen.sha256 != sha256:
        raise BundleError(
            f"the samples are not those of the bundle: SHA-256 {chosen.sha256[:12]}…, the bundle's {sha256[:12]}…. "
            "Give the right folder with --samples"
        )
    return Calibration(samples=chosen, options=recipe.calibration)


def _compared(first: Manifest, made: Deployment) -> Iterator[Comparison]:
    second = made.manifest
    for graph in first.graphs:
        match = next((one for one in second.graphs if one.path == graph.path), None)
        then, now = first.file(graph.path).sha256, "" if match is None else second.file(graph.path).sha256
        detail = "" if then == now else f"SHA-256 {then[:12]}… then, {now[:12] or 'no such graph'}… now"
        yield Comparison(subject=graph.path, same=then == now, detail=detail)
    for engine, again in zip(first.engines, second.engines, strict=False):
        same = dict(engine.layer_types) == dict(again.layer_types)
        then, now = _types(engine.layer_types), _types(again.layer_types)
        yield Comparison(
            subject=f"types of {engine.path}", same=same, detail=then if same else f"{then} then, {now} now"
        )
    checks = [check for check in made.report.checks if check.psnr_db is not None]
    yield Comparison(subject="pictures", same=made.report.passed, detail=f"{len(checks)} comparisons within bounds")


def _types(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in types.items())


def _other_versions(manifest: Manifest) -> dict[str, str]:
    here = installed_versions(TOOLS)
    then = manifest.versions
    names = sorted(name for name in {*then, *here} if then.get(name) != here.get(name))
    return {name: f"{then.get(name, 'none')} → {here.get(name, 'none')}" for name in names}
