"""The paper's ablation (M1, M2, M3 and MSAN) at a scale that fits a CPU: same seeds and steps, spread over seeds.

M1 has no self-attention module and squared error, M2 none and Eq. 9, M3 the module and squared error, MSAN
the module and Eq. 9. Each is trained once for each seed, and measured on the pictures held back from training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from msan.checkpoint import load_checkpoint, network_from_checkpoint
from msan.data.loader import DataOptions, open_data
from msan.training.distributed import Team, device_named
from msan.training.recipe import TrainConfig, load_recipe
from msan.training.train import TrainOptions, train
from msan.training.validation import open_validation

__all__ = ["main"]

VARIANTS = {"M1": (False, "mse"), "M2": (False, "bce"), "M3": (True, "mse"), "MSAN": (True, "bce")}
PAPER_DB = {"M1": 32.06, "M2": 32.18, "M3": 32.00, "MSAN": 32.24}
"""GoPro column of the paper's Table 3."""


def main() -> None:
    """Train all variants for all seeds, print a table, and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="folders of pairs and of sharp pictures")
    parser.add_argument("--recipe", default=str(Path(__file__).with_name("ablation.toml")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("ablation-runs"), help="folder of the runs; they resume")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    gains = {name: [] for name in VARIANTS}
    for seed in arguments.seeds:
        for name in VARIANTS:
            gain = measure(name, seed, arguments.data, recipe, arguments.runs)
            gains[name].append(gain)
            print(f"{name} seed {seed}: {gain:+.3f} dB", flush=True)  # noqa: T201 - this is a command
    text = json.dumps(result(gains, arguments.seeds, recipe), indent=2) + "\n"
    print(text, end="")  # noqa: T201
    if arguments.json is not None:
        arguments.json.write_text(text)


def measure(name: str, seed: int, data: Sequence[Path], recipe: TrainConfig, runs: Path) -> float:
    """Train one variant (or go on with it) and give its mean PSNR gain in dB on the pictures held back."""
    attention, loss = VARIANTS[name]
    spec = dataclasses.replace(recipe.spec, attention=attention)
    config = dataclasses.replace(recipe, spec=spec, loss=loss, seed=seed)
    team = Team(rank=0, processes=1, device=device_named(None))
    options = TrainOptions(data=DataOptions(announce=lambda _: None))
    trained = train(data, runs / f"{name}-{seed}", config, team, options)
    network = network_from_checkpoint(load_checkpoint(trained.last)).to(team.device)
    # Seed of the data, not of the variant: every network is measured on the same crops.
    held = open_data(data, dataclasses.replace(recipe, candidates=1), options.data)
    validation = open_validation(held.held_sharp, held.held_pairs, recipe, options.data.announce)
    if validation is None:
        raise SystemExit("no picture was held back: set held_back in the recipe")
    return validation.score(network, team.device).gain_db


def result(gains: dict[str, list[float]], seeds: Sequence[int], recipe: TrainConfig) -> dict[str, Any]:
    """Mean and spread of each variant beside the paper's PSNR."""
    return {
        "what": "mean PSNR gain over the blurred input in dB on pictures held back from training",
        "seeds": list(seeds),
        "variants": {
            name: {
                "gain_db": [round(value, 4) for value in values],
                "mean_db": round(statistics.fmean(values), 4),
                "standard_deviation_db": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                "paper_gopro_db": PAPER_DB[name],
            }
            for name, values in gains.items()
        },
        "recipe": recipe.to_dict(),
        "machine": describe_machine(("msan", "numpy", "torch")),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
