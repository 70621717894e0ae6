"""The manifest of a bundle: frozen types and strict, versioned JSON.

A bundle is a folder with ``manifest.json``, ONNX graphs, engines and a parity report. The manifest
names every file with its size and SHA-256, and carries a digest of itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_args

from msan_runtime.atomic import write_text
from msan_runtime.attention import Attention, AttentionError
from msan_runtime.contract import CONTRACT_VERSION, Io
from msan_runtime.errors import BundleError

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "BundleFile",
    "EngineEntry",
    "GraphEntry",
    "Manifest",
    "Profile",
    "SelfTest",
    "describe_file",
    "load_manifest",
    "parse_manifest",
    "read_checked",
    "read_manifest",
    "save_manifest",
]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2
READABLE_SCHEMAS = (1, 2)
"""Schema 1 has no self-test and no recipe."""

FLAVOURS = ("tensorrt-rtx", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """A file of the bundle: path relative to the bundle's folder (POSIX form), size, SHA-256."""

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        pure = PurePosixPath(self.path)
        unsafe = pure.is_absolute() or ".." in pure.parts or "\\" in self.path or ":" in self.path
        if unsafe or not pure.parts or not self.path.isprintable():
            raise BundleError(f"the manifest names {self.path!r}, which is not a file inside the bundle")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise BundleError(f"the manifest's SHA-256 of {self.path} is not one: {self.sha256!r}")


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """An ONNX graph of the bundle: which file, its precision (``fp32``, ``fp16``, ``int8``, ``fp8``), its contract."""

    path: str
    precision: str
    io: Io
    opset: int

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS or self.io not in get_args(Io):
            raise BundleError(f"the manifest's graph {self.path} has precision {self.precision!r}, io {self.io!r}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An optimization profile: the smallest, typical and largest input, (batch, height, width)."""

    min: tuple[int, int, int]
    opt: tuple[int, int, int]
    max: tuple[int, int, int]

    def __post_init__(self) -> None:
        shapes = (self.min, self.opt, self.max)
        if any(len(shape) != 3 or any(n < 1 for n in shape) for shape in shapes):
            raise BundleError(f"a profile needs three shapes (batch, height, width) of at least 1, not {shapes}")
        if any(side % 8 for shape in shapes for side in shape[1:]):
            raise BundleError(f"heights and widths of a profile must be multiples of 8, not {shapes}")
        if any(not low <= mid <= high for low, mid, high in zip(*shapes, strict=True)):
            raise BundleError(f"a profile needs min <= opt <= max in every dimension, not {shapes}")


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """A native engine of the bundle.

    Attributes:
        path: its file.
        flavour: ``tensorrt-rtx`` or ``tensorrt``.
        flavour_version: of the library that built it: engines do not outlive it.
        compute_capabilities: that it was built for, ``8.6`` form.
        profile: its one optimization profile.
        precision: as asked for and as proved.
        layer_types: count of compute layers by kind and type, ``{"convolution fp16": 192}``.
        graph: path of the ONNX graph that it was built from.
    """

    path: str
    flavour: str
    flavour_version: str
    compute_capabilities: tuple[str, ...]
    profile: Profile
    precision: str
    layer_types: Mapping[str, int]
    graph: str

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS or self.precision not in PRECISIONS:
            raise BundleError(f"the manifest's engine {self.path} is {self.flavour!r} in {self.precision!r}")


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """A picture that the network must give: PNG files of the bundle, RGB with 8 bits, equal in size.

    Attributes:
        blurred, deblurred: paths; ``deblurred`` is what PyTorch gives in FP32.
    """

    blurred: str
    deblurred: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle holds and where it came from.

    Attributes:
        name: of the network, for people.
        spec: the ModelSpec as JSON values.
        contract_version: of the image contract that all graphs follow.
        graphs, engines: what can be run; every path is in ``files``.
        files: every file of the bundle but the manifest.
        versions: of the tools that made it.
        provenance: checkpoint file and hash, date, command, licence.
        attention: of all graphs and engines, ``global`` or ``window:SIZE`` (:class:`msan_runtime.attention.Attention`);
            manifests of before it existed have none and are ``global``.
        recipe: the options that it was made with, by the names of ``msan deploy``: enough to make it again.
        self_test: what every backend must give before it is used; manifests of schema 1 have none.
    """

    name: str
    spec: Mapping[str, int | bool]
    contract_version: int
    graphs: tuple[GraphEntry, ...]
    engines: tuple[EngineEntry, ...]
    files: tuple[BundleFile, ...]
    versions: Mapping[str, str]
    provenance: Mapping[str, str]
    attention: str = "global"
    self_test: SelfTest | None = None
    recipe: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        try:
            if str(Attention.parse(self.attention)) != self.attention:  # a command's default may change, a bundle not
                raise AttentionError(f"attention of a bundle has a size, which {self.attention!r} has not")
        except AttentionError as error:
            raise BundleError(f"the manifest names attention that this msan does not know: {error}") from error
        if self.contract_version != CONTRACT_VERSION:
            raise BundleError(
                f"the bundle follows image contract {self.contract_version}, this msan {CONTRACT_VERSION}. "
                "Use the msan that made it, or deploy the checkpoint again"
            )
        listed = {file.path for file in self.files}
        runs = [entry.path for entry in (*self.graphs, *self.engines)]
        tests = [] if self.self_test is None else [self.self_test.blurred, self.self_test.deblurred]
        for path in (*runs, *tests):
            if path not in listed:
                raise BundleError(f"the manifest uses {path} but does not list its hash")

    def file(self, path: str) -> BundleFile:
        """The entry of the file at ``path``."""
        return next(file for file in self.files if file.path == path)


def describe_file(folder: Path, path: str) -> BundleFile:
    """Size and SHA-256 of the file at ``path`` in ``folder``."""
    data = (folder / path).read_bytes()
    return BundleFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into ``folder``, atomically."""
    body: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **_plain(manifest)}
    body["manifest_sha256"] = _digest(body)
    write_text(folder / MANIFEST_NAME, json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` of the bundle at ``folder`` (not yet the files it names).

    Raises:
        BundleError: if it is missing, not JSON, of another schema, changed since it was written,
            or names a path outside the folder.
    """
    return parse_manifest(read_manifest(folder), folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> bytes:
    """The bytes of ``manifest.json`` of the bundle at ``folder``, unchecked.

    Raises:
        BundleError: if it is missing or cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}. Make one with: msan deploy") from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error}. Deploy the checkpoint again") from error


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in ``data``, which was read from ``path``.

    Raises:
        BundleError: as :func:`load_manifest`.
    """
    try:
        body: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"cannot read {path}: {error}. Deploy the checkpoint again") from error
    if not isinstance(body, dict):
        raise BundleError(f"{path} is not a manifest: it holds a {type(body).__name__}")
    return _parse(dict(body), path)


def read_checked(folder: Path, file: BundleFile) -> bytes:
    """The bytes of ``file``, whose size and SHA-256 are the manifest's.

    Raises:
        BundleError: if it is missing, changed, or lies outside the folder through a link.
    """
    path = folder / file.path
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise BundleError(f"{path} leads out of the bundle's folder: refused")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"the bundle's file {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise BundleError(
            f"{path} was changed since the bundle was made: SHA-256 {found[:12]}…, manifest {file.sha256[:12]}…. "
            "Deploy the checkpoint again"
        )
    return data


def _parse(body: dict[str, Any], path: Path) -> Manifest:
    version = body.pop("schema_version", None)
    if type(version) is not int or version not in READABLE_SCHEMAS:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        step = "Upgrade msan" if newer else "Deploy the checkpoint again"
        raise BundleError(f"{path} has schema version {version!r}, this msan reads 1 to {SCHEMA_VERSION}. {step}")
    digest = body.pop("manifest_sha256", None)
    if digest != _digest({"schema_version": version, **body}):
        raise BundleError(f"{path} was changed since the bundle was made. Deploy the checkpoint again")
    try:
        graphs = tuple(_built(GraphEntry, entry) for entry in _each(body, "graphs"))
        engines = tuple(_engine(entry) for entry in _each(body, "engines"))
        files = tuple(_built(BundleFile, entry) for entry in _each(body, "files"))
        test = body.get("self_test")
        self_test = None if test is None else _built(SelfTest, test)
        parts = {"graphs": graphs, "engines": engines, "files": files, "self_test": self_test}
        return _built(Manifest, {**body, **parts})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} does not follow schema {SCHEMA_VERSION}: {error}") from error


T = TypeVar("T")


def _built(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from exactly its fields."""
    return kind(**values)


def _engine(values: Mapping[str, Any]) -> EngineEntry:
    profile = Profile(**{name: tuple(shape) for name, shape in values["profile"].items()})
    capabilities = tuple(values["compute_capabilities"])
    return _built(EngineEntry, {**values, "profile": profile, "compute_capabilities": capabilities})


def _each(body: Mapping[str, Any], name: str) -> Iterable[Mapping[str, Any]]:
    return body[name]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _digest(body: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in body.items() if key != "manifest_sha256"}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
