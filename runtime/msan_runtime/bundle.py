"""An opened bundle: its folder, its manifest, and files whose hashes have been checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msan_runtime.contract import Io
from msan_runtime.errors import BundleError
from msan_runtime.manifest import (
    MANIFEST_NAME,
    EngineEntry,
    GraphEntry,
    Manifest,
    parse_manifest,
    read_checked,
    read_manifest,
)
from msan_runtime.signature import check_signature

__all__ = ["DEFAULT_BUNDLE", "Bundle", "find_bundle", "open_bundle", "shipped_bundles"]

DEFAULT_BUNDLE = "msan-s"
MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on disk whose manifest and files have been checked."""

    folder: Path
    manifest: Manifest

    def read(self, path: str) -> bytes:
        """The bytes of a file of the bundle, their hash checked once more.

        Raises:
            BundleError: if the file changed since the bundle was opened.
        """
        return read_checked(self.folder, self.manifest.file(path))

    def graph(self, *, prefer: tuple[str, ...], io: Io = "uint8") -> GraphEntry | None:
        """The graph of ``io`` pictures whose precision comes first in ``prefer``; ``None`` if there is none."""
        graphs = [graph for graph in self.manifest.graphs if graph.io == io and graph.precision in prefer]
        return min(graphs, key=lambda graph: prefer.index(graph.precision), default=None)

    def engine(self, flavour: str) -> EngineEntry | None:
        """The engine of that flavour; ``None`` if there is none."""
        return next((engine for engine in self.manifest.engines if engine.flavour == flavour), None)


def shipped_bundles() -> dict[str, Path]:
    """Names and folders of the bundles that are installed with msan."""
    return {path.parent.name: path.parent for path in sorted(MODELS.glob("*/manifest.json"))}


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle given by its path or the name of a shipped one.

    Raises:
        BundleError: if there is no such folder.
    """
    folder = Path(bundle)
    if not folder.is_dir():
        folder = shipped_bundles().get(str(bundle), folder)
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}. Shipped bundles: {', '.join(shipped_bundles()) or 'none'}")
    return folder


def open_bundle(bundle: str | Path | None = None, *, public_key: Path | None = None) -> Bundle:
    """Open a bundle and check every file of it.

    Args:
        bundle: a folder, or the name of a shipped bundle; ``msan-s`` if left out.
        public_key: PEM file of an Ed25519 key; only what was signed with its private half is then opened.

    Raises:
        BundleError: if there is none, its schema is unknown, or a file is missing or changed.
        SignatureError: if it was not signed with that key.
    """
    folder = find_bundle(DEFAULT_BUNDLE if bundle is None else bundle)
    data = read_manifest(folder)
    if public_key is not None:
        check_signature(data, folder, public_key)
    manifest = parse_manifest(data, folder / MANIFEST_NAME)
    for file in manifest.files:
        read_checked(folder, file)
    return Bundle(folder=folder, manifest=manifest)
