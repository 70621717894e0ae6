"""An engine for this machine, built from the graph of a bundle whose own engine does not fit here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from msan_runtime.backends.cuda import compute_capability, device_name
from msan_runtime.bundle import Bundle
from msan_runtime.engines.building import (
    DEFAULT_PROFILE,
    MODULES,
    EngineSpec,
    Flavour,
    count_types,
    import_flavour,
    parse_graph,
)
from msan_runtime.engines.kept import EngineKey, kept_or_built
from msan_runtime.errors import BackendError
from msan_runtime.manifest import EngineEntry
from msan_runtime.targets import Capability

__all__ = ["RebuiltEngine", "Target", "engine_key", "entry_for", "rebuilt_engine", "this_gpu"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an engine is built for.

    Attributes:
        capability: of the GPU.
        gpu_name: of the GPU; only engines of classic TensorRT depend on it.
    """

    capability: Capability
    gpu_name: str = ""


def this_gpu() -> Target:
    """The first GPU of this machine.

    Raises:
        BackendError: if there is none.
    """
    major, minor = compute_capability().split(".")
    return Target(capability=Capability(major=int(major), minor=int(minor)), gpu_name=device_name())


def entry_for(bundle: Bundle, flavour: str) -> EngineEntry:
    """The bundle's engine of that flavour; if it has none, what one of its FP16 graph would be.

    Raises:
        BackendError: if it has neither.
    """
    entry = bundle.engine(flavour)
    if entry is not None:
        return entry
    graph = bundle.graph(prefer=("fp16",))
    if graph is None:
        raise BackendError(f"the bundle has no {flavour} engine and no FP16 graph to build one from")
    return EngineEntry(
        path=f"{bundle.manifest.name}.engine",
        flavour=flavour,
        flavour_version="",
        compute_capabilities=(),
        profile=DEFAULT_PROFILE,
        precision="fp16",
        layer_types={},
        graph=graph.path,
    )


def engine_key(bundle: Bundle, entry: EngineEntry, target: Target) -> EngineKey:
    """The key of an engine like ``entry``, built here and now for ``target``.

    Raises:
        MissingExtraError: if the flavour is not installed.
    """
    flavour = cast(Flavour, entry.flavour)
    classic = flavour == "tensorrt"
    return EngineKey(
        graph_sha256=bundle.manifest.file(entry.graph).sha256,
        flavour=flavour,
        flavour_version=import_flavour(flavour).__version__,
        device=f"{target.capability} {target.gpu_name}" if classic else str(target.capability),
        profile=entry.profile,
    )


@dataclass(frozen=True, kw_only=True)
class RebuiltEngine:
    """An engine that fits this machine.

    Attributes:
        data: its bytes.
        entry: what it is.
        built: whether it was built just now, by this process, and not kept from before.
    """

    data: bytes = field(repr=False)
    entry: EngineEntry
    built: bool


def rebuilt_engine(bundle: Bundle, entry: EngineEntry, target: Target, *, reason: str) -> RebuiltEngine:
    """An engine like ``entry`` that fits ``target``: kept from before, or built now.

    It takes seconds, and no GPU where the flavour is TensorRT-RTX. ``reason`` is logged if it is built.

    Raises:
        MissingExtraError: if the flavour is not installed.
        BuildError: if it cannot be built for ``target``.
        BackendError: if its layers would not have the types of the bundle's engine.
        BundleError: if the graph was changed.
    """
    key = engine_key(bundle, entry, target)
    built = False

    def build() -> bytes:
        nonlocal built
        built = True
        logger.warning("building an engine for %s (kept for the next time): %s", target.capability.sm, reason)
        return _built(bundle, entry, target)

    data = kept_or_built(key, _about(bundle, entry, key), build)
    fitting = replace(entry, flavour_version=key.flavour_version, compute_capabilities=(str(target.capability),))
    return RebuiltEngine(data=data, entry=fitting, built=built)


def _built(bundle: Bundle, entry: EngineEntry, target: Target) -> bytes:
    flavour = cast(Flavour, entry.flavour)
    parsed = parse_graph(bundle.read(entry.graph), flavour)
    types = count_types(parsed.layers)
    if entry.layer_types and types != dict(entry.layer_types):
        raise BackendError(
            f"an engine of {entry.graph} would have other types here ({_told(types)}) than the one that was verified "
            f"({_told(entry.layer_types)}): deploy the checkpoint again"
        )
    return parsed.build(EngineSpec(flavour=flavour, profile=entry.profile, capabilities=(target.capability,)))


def _about(bundle: Bundle, entry: EngineEntry, key: EngineKey) -> dict[str, str]:
    """What ``msan cache list`` shows."""
    return {
        "network": bundle.manifest.name,
        "precision": entry.precision,
        "built by": f"{MODULES[cast(Flavour, entry.flavour)][0]} {key.flavour_version}",
        "for": key.device,
        "tiles up to": "×".join(map(str, entry.profile.max[1:])),
        "graph": key.graph_sha256[:12],
    }


def _told(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in types.items())
