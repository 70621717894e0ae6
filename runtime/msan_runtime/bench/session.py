"""A whole run of ``msan bench``: every size, the memory of each competitor, and the folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msan_runtime.bench.competitors import OURS, BenchError, Setup, opened, openers
from msan_runtime.bench.folder import FolderTimes, measure_folder, measure_made_up_folder
from msan_runtime.bench.latency import SizeResult, check_size, measure_size
from msan_runtime.bench.memory import PeakMemory, measured_memory
from msan_runtime.bench.timing import WARM_UP_ROUNDS
from msan_runtime.bundle import Bundle, open_bundle
from msan_runtime.machine import compute_threads, describe_machine, memory_bytes

__all__ = ["PACKAGES", "BenchOptions", "BenchResult", "Listener", "run_bench"]

PACKAGES = (
    "msan",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "torch",
)
"""Whose versions figures depend on."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured.

    Attributes:
        bundle: a folder, or the name of a shipped one.
        sizes: (height, width) in pixels, multiples of 8.
        backends: that run the bundle; all that can if ``None``.
        against: competitors by name; all that are installed if ``None``.
        checkpoint: of the bundle's network, for PyTorch.
        rounds: timed runs of each competitor.
        memory: whether each competitor's peak memory is measured, in a process of its own.
        count: synthetic pictures in the folder run of each size; 0 for none.
        pictures: a folder of pictures. With it, only the folder run is made.

    Raises:
        BenchError: for numbers that nothing can be measured with.
    """

    bundle: str = "msan-s"
    sizes: tuple[tuple[int, int], ...] = ((360, 640),)
    backends: tuple[str, ...] | None = None
    against: tuple[str, ...] | None = None
    checkpoint: Path | None = None
    rounds: int = 15
    memory: bool = True
    count: int = 20
    pictures: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.count < 0 or not self.sizes:
            raise BenchError(
                f"nothing can be measured with {self.rounds} rounds, {self.count} pictures and sizes {self.sizes}"
            )
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise BenchError(f"no checkpoint file at {self.checkpoint}. Give the one that the bundle was made of")
        if self.pictures is not None and not self.pictures.is_dir():
            raise BenchError(f"no folder {self.pictures}. Give a folder of pictures")


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured.

    Attributes:
        setup: with what.
        sizes: latency of all competitors at each size.
        folders: folder runs, by what was in the folder.
    """

    setup: Setup
    sizes: tuple[SizeResult, ...]
    folders: Mapping[str, FolderTimes]

    def to_dict(self) -> dict[str, Any]:
        """All figures, with what they depend on, as plain JSON values."""
        manifest = self.setup.bundle.manifest
        return {
            "bundle": {
                "name": manifest.name,
                "spec": dict(manifest.spec),
                "attention": manifest.attention,
                "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256"),
            },
            "machine": describe_machine(PACKAGES),
            "threads": self.setup.threads,
            "sizes": [size.to_dict() for size in self.sizes],
            "folders": {name: times.to_dict() for name, times in self.folders.items()},
        }


class Listener:
    """Told how far a run is; does nothing with it."""

    def begin(self, what: str, steps: int) -> None:
        """``what`` begins, and takes so many steps."""

    def advance(self) -> None:
        """A step is done."""


def run_bench(options: BenchOptions, listener: Listener | None = None) -> BenchResult:
    """Measure what ``options`` say.

    Raises:
        MsanError: if something asked for by name cannot run here, or is not there.
    """
    listener = listener or Listener()
    bundle = open_bundle(options.bundle)
    setup = Setup(bundle=bundle, threads=compute_threads(), checkpoint=options.checkpoint)
    sizes = () if options.pictures is not None else _measured_sizes(setup, options, listener)
    return BenchResult(setup=setup, sizes=sizes, folders=_measured_folders(bundle, options, listener))


def _measured_sizes(setup: Setup, options: BenchOptions, listener: Listener) -> tuple[SizeResult, ...]:
    for height, width in options.sizes:
        check_size(setup, height, width, memory_bytes())
    wanted = openers(options.backends, options.against)
    required = {*(OURS + name for name in options.backends or ()), *(options.against or ())}
    results: list[SizeResult] = []
    with opened(wanted, setup, required) as entrants:
        for height, width in options.sizes:
            # Memory first, so that no other process disturbs the timed runs.
            memories = _memories(setup, entrants, height, width, listener) if options.memory else {}
            listener.begin(f"time at {height}×{width}", options.rounds + WARM_UP_ROUNDS)
            results.append(
                measure_size(
                    setup,
                    entrants,
                    height,
                    width,
                    rounds=options.rounds,
                    memories=memories,
                    on_round=listener.advance,
                )
            )
    return tuple(results)


def _memories(setup: Setup, names: Iterable[str], height: int, width: int, listener: Listener) -> dict[str, PeakMemory]:
    memories: dict[str, PeakMemory] = {}
    chosen = list(names)
    listener.begin(f"memory at {height}×{width}", len(chosen))
    for name in chosen:
        memories[name] = measured_memory(name, setup, height, width)
        listener.advance()
    return memories


def _measured_folders(bundle: Bundle, options: BenchOptions, listener: Listener) -> dict[str, FolderTimes]:
    """The folder runs, by what was in the folder."""
    backend = options.backends[0] if options.backends else "auto"
    if options.pictures is not None:
        listener.begin(f"files of {options.pictures}", 1)
        return {options.pictures.name: measure_folder(bundle, backend, options.pictures)}
    folders: dict[str, FolderTimes] = {}
    for height, width in options.sizes if options.count else ():
        what = f"{options.count} JPEG files of {height}×{width}"
        listener.begin(what, 1)
        folders[what] = measure_made_up_folder(bundle, backend, options.count, height, width)
    return folders
