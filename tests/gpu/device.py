"""What works on the GPU of this machine: backends, engines, and bundles that are wrong on purpose."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from msan_runtime.backends import rtx
from msan_runtime.bundle import open_bundle
from msan_runtime.engines.rebuilding import entry_for, rebuilt_engine, this_gpu
from msan_runtime.errors import EngineUnfitError, MsanError
from msan_runtime.manifest import EngineEntry, describe_file, load_manifest, save_manifest
from msan_runtime.select import select_backend

ROOT = Path(__file__).parents[2]

DEVICE_BACKENDS = ("rtx", "tensorrt", "ort-cuda")
NATIVE_BACKENDS = ("rtx", "tensorrt")
FLAVOURS = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}

MSAN = (sys.executable, "-c", "from msan_runtime.cli import main; main()")
LOST_MSAN = (sys.executable, "-c", "from tests.gpu.lost import main; main()")


@dataclass(frozen=True, kw_only=True)
class Found:
    """The first backend that works, empty if none does, and why each one before it does not."""

    name: str
    reasons: tuple[str, ...]


@cache
def first_working(names: tuple[str, ...]) -> Found:
    """Try to load the shipped bundle on each of ``names``, with an engine built for this GPU where that helps."""
    reasons: list[str] = []
    for name in names:
        try:
            select_backend(open_bundle(), name).backend.close()
        except MsanError as error:
            reasons.append(str(error))
        else:
            return Found(name=name, reasons=tuple(reasons))
    return Found(name="", reasons=tuple(reasons))


@cache
def rtx_engine() -> tuple[bytes, EngineEntry]:
    """The shipped engine, or one like it for this GPU and this TensorRT-RTX."""
    bundle = open_bundle()
    entry = entry_for(bundle, "tensorrt-rtx")
    data = bundle.read(entry.path)
    try:
        rtx.open_rtx(data, entry).close()
    except EngineUnfitError as error:
        engine = rebuilt_engine(bundle, entry, this_gpu(), reason=str(error))
        return engine.data, engine.entry
    return data, entry


def changed_bundle(folder: Path, files: dict[str, bytes], **changes: Any) -> Path:
    """The shipped bundle in ``folder``, with other ``files`` and fields of the manifest, every hash right."""
    shutil.copytree(open_bundle().folder, folder)
    for path, data in files.items():
        (folder / path).write_bytes(data)
    manifest = dataclasses.replace(load_manifest(folder), **changes)
    described = tuple(describe_file(folder, file.path) for file in manifest.files)
    save_manifest(dataclasses.replace(manifest, files=described), folder)
    return folder


def ran(
    command: Sequence[str], *arguments: str | Path, seconds: float = 300, changes: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, from the repository's root, with ``changes`` of the environment.

    Raises:
        subprocess.TimeoutExpired: if it hangs.
    """
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **(changes or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
