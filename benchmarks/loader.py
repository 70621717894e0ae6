"""Whether training waits for its data: images/s of the loader alone, of the blur on the device, and of whole steps.

The loader is measured with pictures in memory and read from disk, and with several numbers of workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from msan.data.datasets import SampleSet, tensors_from_batch
from msan.data.loader import DataOptions, batches, open_data
from msan.data.pictures import CacheName
from msan.training.distributed import Team, device_named
from msan.training.recipe import TrainConfig, load_recipe
from msan.training.schedule import plan_schedule
from msan.training.trainer import Trainer

__all__ = ["main"]


def main() -> None:
    """Print and optionally write the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="folders of pairs and of sharp pictures")
    parser.add_argument("--recipe", default="msan-s")
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = dataclasses.replace(load_recipe(arguments.recipe), init=None)
    device = device_named(arguments.device)
    text = json.dumps(measure(arguments.data, config, device, arguments.workers, arguments.steps), indent=2) + "\n"
    print(text, end="")  # noqa: T201 - this is a command
    if arguments.json is not None:
        arguments.json.write_text(text)


def measure(
    data: Sequence[Path], config: TrainConfig, device: torch.device, workers: Sequence[int], steps: int
) -> dict[str, Any]:
    """Images a second of each part, all in one process, one after the other."""
    rates: dict[str, float] = {}
    caches: tuple[CacheName, ...] = ("memory", "off")
    for cache in caches:
        samples = open_data(data, config, DataOptions(cache=cache, announce=lambda _: None)).samples
        for count in workers:
            rates[f"loader_{cache}_{count}_workers"] = loader_rate(samples, device, count, steps)
        if cache == "memory":
            rates["blur_on_device"] = blur_rate(samples, device, steps)
            rates["whole_step"] = step_rate(samples, device, max(workers), steps)
    return {
        "what": f"images/s, {config.spec.name}, batch {config.batch} of {config.crop_px}², {device.type}",
        "images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "step_over_slowest_loader": round(
            rates["whole_step"] / min(rate for name, rate in rates.items() if name.startswith("loader")), 4
        ),
        "machine": describe_machine(("msan", "numpy", "pillow", "torch")),
    }


def loader_rate(samples: SampleSet, device: torch.device, workers: int, steps: int) -> float:
    """Images a second out of the loader, the first batch (start of the workers) left out."""
    loaded = batches(samples, range(steps + 1), rank=0, processes=1, device=device, workers=workers)
    next(loaded)
    return _rate(lambda: next(loaded), samples.config.batch, steps, device)


def blur_rate(samples: SampleSet, device: torch.device, steps: int) -> float:
    """Images a second of blur, noise and compression on the device."""
    batch = next(batches(samples, range(1), rank=0, processes=1, device=device, workers=0))
    return _rate(lambda: tensors_from_batch(batch, samples.config, device), samples.config.batch, steps, device)


def step_rate(samples: SampleSet, device: torch.device, workers: int, steps: int) -> float:
    """Images a second of whole training steps, the first left out (it compiles and allocates)."""
    config = samples.config
    team = Team(rank=0, processes=1, device=device)
    trainer = Trainer(config, plan_schedule(config, pictures=samples.pictures, processes=1), team)
    loaded = batches(samples, range(steps + 1), rank=0, processes=1, device=device, workers=workers)

    def step() -> None:
        trainer.take_step(*tensors_from_batch(next(loaded), config, device))

    step()
    return _rate(step, config.batch, steps, device)


def _rate(work: Callable[[], object], images: int, times: int, device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait_for(device)
    return images * times / (time.perf_counter() - started)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
