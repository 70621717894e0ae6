"""Engines built on this machine, kept in the user's cache folder: found again, or built once however many ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from msan_runtime.atomic import remove_abandoned
from msan_runtime.cache import cache_folder
from msan_runtime.locks import taking_turns
from msan_runtime.manifest import Profile
from msan_runtime.store import keep, recall, trim

__all__ = ["ENGINES_BYTES", "EngineKey", "engine_path", "engines_folder", "kept_or_built"]

RECIPE = 1
"""Raised when engines are built in another way: those of before are then built again."""

ENGINES_BYTES = 2 << 30
"""Of all engines together; those used longest ago make room."""


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """All that an engine depends on.

    Attributes:
        graph_sha256: of the ONNX file.
        flavour, flavour_version: of the library that builds and runs it.
        device: compute capability, ``8.9`` form; of classic TensorRT also the name of the GPU.
        profile: its optimization profile.
    """

    graph_sha256: str
    flavour: str
    flavour_version: str
    device: str
    profile: Profile

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that stand for the key."""
        text = json.dumps({"recipe": RECIPE, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def engines_folder() -> Path:
    """Where engines are kept. It need not exist."""
    return cache_folder() / "engines"


def engine_path(key: EngineKey) -> Path:
    """Where the engine of ``key`` is kept, or would be."""
    return engines_folder() / f"{key.digest}.engine"


def kept_or_built(key: EngineKey, about: Mapping[str, str], build: Callable[[], bytes]) -> bytes:
    """The engine of ``key``: the one that is kept; else ``build`` is called, and what it gives is kept.

    Of several processes that ask for one key at once, one builds, and the others wait for it. Where nothing can be
    kept, each builds its own: slower, and said.
    """
    path = engine_path(key)
    kept = recall(path)
    if kept is not None:
        return kept
    with taking_turns(path.with_suffix(".lock")):
        kept = recall(path)  # by who held the lock before
        if kept is not None:
            return kept
        with suppress(OSError):
            remove_abandoned(path.parent)
        data = build()
        if keep(path, data, about):
            trim(path.parent, ENGINES_BYTES)
        return data
