"""The data loader of a training: opens its pictures, and gives each process the batches of its steps in order."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from msan.data.datasets import Batch, Sample, SampleSet, collate
from msan.data.pictures import (
    CacheName,
    PairPictures,
    PictureStore,
    SharpPictures,
    Source,
    fits_in_memory,
    large_enough,
)
from msan.data.readers import DatasetError, Pair, find_pair_sets, layout_of, sharp_files
from msan.degradation.degrade import margin_px
from msan.training.recipe import TrainConfig
from msan_runtime.errors import MsanError

__all__ = ["DataOptions", "TrainingData", "batches", "open_data"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How pictures are read; nothing here changes what is trained on.

    Attributes:
        cache: decoded pictures in memory, or decoded anew for each sample; ``auto`` keeps them if there is room.
        workers: processes that prepare samples; ``None``: none beside a CPU, up to 8 beside a GPU.
        announce: hears, in words, what was found.
    """

    cache: CacheName = "auto"
    workers: int | None = None
    announce: Callable[[str], None] = print


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What to train on, and what was held back: sharp files and pairs."""

    samples: SampleSet
    held_sharp: Sequence[Path]
    held_pairs: Sequence[Pair]

    def fingerprint(self) -> str:
        """Which pictures they all are: eight hexadecimal digits each."""
        held = (SharpPictures(files=self.held_sharp, long_side_px=0), PairPictures(pairs=self.held_pairs))
        return "".join((self.samples.fingerprint(), *(PictureStore(source).fingerprint() for source in held)))


def open_data(roots: Sequence[Path], config: TrainConfig, options: DataOptions) -> TrainingData:
    """Open folders of pairs (recognised by their layout) and of sharp pictures.

    Raises:
        DatasetError: for a folder without pictures, or without one that is large enough.
    """
    pairs: list[Pair] = []
    files: list[Path] = []
    for root in roots:
        _find(root, config, pairs, files, options.announce)
    if config.layout is not None and not pairs:
        raise DatasetError(f"none of {', '.join(map(str, roots))} is laid out as {config.layout}: leave out the layout")
    kept_pairs, held_pairs = _held_back(pairs, config.held_back)
    kept_files, held_files = _held_back(files, config.held_back)
    wide = config.crop_px + 2 * margin_px(config.blur)
    paired = _store(PairPictures(pairs=kept_pairs), config.crop_px, options)
    sharp = _store(SharpPictures(files=kept_files, long_side_px=config.long_side_px), wide, options)
    return TrainingData(
        samples=SampleSet(config, sharp=sharp, pairs=paired), held_sharp=held_files, held_pairs=held_pairs
    )


def batches(
    samples: SampleSet, steps: range, *, rank: int, processes: int, device: torch.device, workers: int | None
) -> Iterator[Batch]:
    """The batches of ``steps`` for process ``rank``: step s has the samples from s·batch·processes on.

    Raises:
        DatasetError: at a sample for which no picture can be decoded.
    """
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
    sampler = _StepSampler(steps, samples.config.batch, rank, processes)
    loader: DataLoader[Any] = DataLoader(
        _Attempts(samples),
        batch_sampler=sampler,
        collate_fn=_collate_attempts,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupts,
    )
    for batch in loader:
        if isinstance(batch, MsanError):
            raise batch
        yield batch


class _Attempts(Dataset[Sample | MsanError]):
    """Samples, or why there is none: raised in a worker, an error would come with the worker's traceback."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Sample | MsanError:
        try:
            return self.samples[index]
        except MsanError as error:
            return error


def _collate_attempts(attempts: Sequence[Sample | MsanError]) -> Batch | MsanError:
    failed = [attempt for attempt in attempts if isinstance(attempt, MsanError)]
    return failed[0] if failed else collate([attempt for attempt in attempts if isinstance(attempt, Sample)])


def _ignore_interrupts(worker: int) -> None:
    """A terminal sends Ctrl-C to workers too, which the step that is to be finished still needs."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _StepSampler(Sampler[list[int]]):
    """Sample indices of each step."""

    def __init__(self, steps: range, batch: int, rank: int, processes: int) -> None:
        self.steps = steps
        self.batch = batch
        self.rank = rank
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = (step * self.processes + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return len(self.steps)


def _find(
    root: Path, config: TrainConfig, pairs: list[Pair], files: list[Path], announce: Callable[[str], None]
) -> None:
    if layout_of(root) is None:
        found = sharp_files(root)
        files.extend(found)
        announce(f"{root}: {len(found)} sharp pictures, to be blurred")
        return
    for pair_set in find_pair_sets(root, layout=config.layout, split="train"):
        pairs.extend(pair_set.pairs)
        announce(f"{root}: {pair_set.name}, {len(pair_set.pairs)} pairs of blurred and sharp pictures")


def _held_back(items: Sequence[T], every: int) -> tuple[list[T], list[T]]:
    """What is trained on, and every ``every``-th for validation; a single picture is not held back."""
    if every == 0 or len(items) < 2:
        return list(items), []
    held = [index % every == 0 for index in range(len(items))]
    return [x for x, h in zip(items, held, strict=True) if not h], [x for x, h in zip(items, held, strict=True) if h]


def _store(source: PairPictures | SharpPictures, side_px: int, options: DataOptions) -> PictureStore | None:
    if not source.names:
        return None
    large = large_enough(source, side_px)
    left_out = len(source.names) - len(large)
    if not large:
        raise DatasetError(
            f"none of {left_out} pictures has sides of {side_px} px or more. The first: {source.names[0]}"
        )
    if left_out:
        options.announce(f"{left_out} of {len(source.names)} pictures left out: a side is under {side_px} px")
    store = PictureStore(_only(source, large))
    if _keep(store, options):
        store.preload()
    return store


def _only(source: PairPictures | SharpPictures, indices: Sequence[int]) -> Source:
    if isinstance(source, PairPictures):
        return dataclasses.replace(source, pairs=[source.pairs[i] for i in indices])
    return dataclasses.replace(source, files=[source.files[i] for i in indices])


def _keep(store: PictureStore, options: DataOptions) -> bool:
    size = store.bytes_decoded()
    if options.cache == "auto" and not fits_in_memory(size):
        options.announce(
            f"{len(store)} pictures take {size / 1e9:.1f} GB decoded: read from disk for each sample instead"
        )
        return False
    return options.cache != "off"
