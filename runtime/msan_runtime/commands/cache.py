"""``msan cache``: what is kept in the user's cache folder; clearing it; building engines before they are needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from msan_runtime.bundle import open_bundle
from msan_runtime.cache import cache_folder
from msan_runtime.commands.screen import printable
from msan_runtime.engines.kept import engine_path
from msan_runtime.engines.rebuilding import Target, engine_key, entry_for, rebuilt_engine, this_gpu
from msan_runtime.errors import BackendError, MsanError
from msan_runtime.machine import installed_versions
from msan_runtime.manifest import EngineEntry
from msan_runtime.store import kept_in
from msan_runtime.targets import Capability, capabilities_named

__all__ = ["cache_app"]

screen = Console(highlight=False, soft_wrap=True, markup=False)

KINDS = {
    "engines": "engines built on this machine",
    "kernels": "what TensorRT-RTX compiled for this GPU",
    "self-tests": "which backends gave the right picture here",
    "verdicts": "which backend is faster here",
    "samples": "crops to calibrate on",
}
"""Folders of the cache, and what is in them."""

cache_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What msan keeps so that it need not be made again: engines, compiled kernels, findings.",
)


@dataclass(frozen=True, kw_only=True)
class _Item:
    path: Path
    size_bytes: int
    used: float
    about: str


@cache_app.command("list")
def list_() -> None:
    """Show what is kept, and where."""
    screen.print(f"{cache_folder()}")
    total = 0
    for kind, words in KINDS.items():
        items = list(_items(kind))
        if not items:
            continue
        size_bytes = sum(item.size_bytes for item in items)
        total += size_bytes
        screen.print(f"\n{kind} ({words}): {len(items)}, {_size(size_bytes)}")
        for item in items:
            used = datetime.fromtimestamp(item.used).strftime("%Y-%m-%d %H:%M")
            screen.print(f"  {item.path.name}  {_size(item.size_bytes)}, used {used}  {printable(item.about)}")
    screen.print(f"\n{_size(total)} in all. Remove it with: msan cache clear" if total else "It is empty.")


@cache_app.command("clear")
def clear(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(help=f"What to remove: {', '.join(KINDS)} (default: all).", metavar="[KIND]..."),
    ] = None,
) -> None:
    """Remove what is kept. It is made again when it is needed."""
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise MsanError(f"the cache has no {unknown[0]!r}. There are: {', '.join(KINDS)}")
    freed = 0
    for kind in kinds or KINDS:
        freed += sum(item.size_bytes for item in _items(kind))
        shutil.rmtree(cache_folder() / kind, ignore_errors=True)
        if (cache_folder() / kind).exists():
            raise MsanError(f"{cache_folder() / kind} could not be removed whole: is it yours, and not in use?")
    screen.print(f"{_size(freed)} freed")


@cache_app.command("prebuild")
def prebuild(
    bundle: Annotated[str, typer.Argument(help="The bundle's folder, or a shipped name.")] = "msan-s",
    gpu: Annotated[
        str | None, typer.Option(help="GPUs, comma-separated (default: this machine's); names: msan build --gpu list.")
    ] = None,
) -> None:
    """Build now the TensorRT-RTX engines that would be built at the first run, where the bundle's own do not fit."""
    opened = open_bundle(bundle)
    entry = entry_for(opened, "tensorrt-rtx")
    targets = _here() if gpu is None else [Target(capability=one) for one in capabilities_named(gpu)]
    for target in targets:
        path = engine_path(engine_key(opened, entry, target))
        why = _misfit(entry, target.capability)
        if why is None:
            screen.print(f"{target.capability.sm}: the bundle's own engine fits, nothing to build")
            continue
        engine = rebuilt_engine(opened, entry, target, reason=why)
        done = "built" if engine.built else "was there"
        where = str(path) if path.exists() else "kept nowhere: the cache folder cannot be written"
        screen.print(f"{target.capability.sm}: {done}, {_size(len(engine.data))}, {where}")
        if not path.exists():
            raise typer.Exit(1)


def _here() -> list[Target]:
    try:
        return [this_gpu()]
    except BackendError as error:
        raise BackendError(f"no GPU to build for here: {error}. Name one, for example --gpu rtx4090") from error


def _misfit(entry: EngineEntry, capability: Capability) -> str | None:
    """Why the bundle's own engine does not run on such a GPU; ``None`` if it does."""
    if not entry.flavour_version:
        return "the bundle has no TensorRT-RTX engine"
    here = installed_versions(("tensorrt-rtx",)).get("tensorrt-rtx", "")
    if here and entry.flavour_version.split(".")[:3] != here.split(".")[:3]:
        return f"{entry.path} was built by TensorRT-RTX {entry.flavour_version}, this is {here}"
    if str(capability) not in entry.compute_capabilities:
        return f"{entry.path} was built for {', '.join(entry.compute_capabilities)} alone"
    return None


def _items(kind: str) -> Iterator[_Item]:
    """What is in one folder of the cache, last used first; of our own formats with what it is."""
    folder = cache_folder() / kind
    about = {kept.path: ", ".join(f"{key} {value}" for key, value in kept.about.items()) for kept in kept_in(folder)}
    found: list[_Item] = []
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(OSError):
            if path.is_file() and path.suffix != ".lock":
                state = path.stat()
                item = _Item(path=path, size_bytes=state.st_size, used=state.st_mtime, about=about.get(path, ""))
                found.append(item)
    yield from sorted(found, key=lambda item: item.used, reverse=True)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"
