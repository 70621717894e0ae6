"""Correct what a trained network does to flat colours, and measure it: the last part of the shipped msan-s.

Zero padding makes dark and bright flat pictures differ from themselves in their corners, by a few levels. These
steps lower the squared error of flat crops where it exceeds half a level, and hold the network to its former output on
other crops.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from msan.checkpoint import find_checkpoint, load_checkpoint, network_from_checkpoint, save_checkpoint
from msan.data.datasets import tensors_from_batch
from msan.data.loader import DataOptions, batches, open_data
from msan.network import MsanNetwork
from msan.training.distributed import device_named
from msan.training.recipe import load_recipe

__all__ = ["main"]

TOLERATED_LEVELS = 0.5
FLAT_WEIGHT = 8.0
CLIP_NORM = 20.0


def main() -> None:
    """Print the largest error of flat greys before and after, and write the corrected weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="file or shipped name")
    parser.add_argument("data", type=Path, nargs="+", help="folders of pairs and of sharp pictures")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", default="msan-s", help="what crops to hold the output on")
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(find_checkpoint(arguments.checkpoint))
    network = network_from_checkpoint(checkpoint).to(device_named(None))
    print(f"largest error of a flat grey: {largest_error(network)} levels")  # noqa: T201 - this is a command
    correct(network, arguments.data, arguments.recipe, arguments.steps, arguments.learning_rate)
    print(f"after {arguments.steps} steps: {largest_error(network)} levels")  # noqa: T201
    save_checkpoint(network, arguments.output, checkpoint.metadata)


def correct(network: MsanNetwork, data: list[Path], recipe: str, steps: int, learning_rate: float) -> None:
    """Change ``network`` in place."""
    device = next(network.parameters()).device
    config = dataclasses.replace(load_recipe(recipe), init=None, batch=4, flat_share=0.0, spec=network.spec)
    samples = open_data(data, config, DataOptions()).samples
    former = MsanNetwork(network.spec).to(device)
    former.load_state_dict(network.state_dict())
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
    loaded = batches(samples, range(steps), rank=0, processes=1, device=device, workers=0)
    for step, batch in enumerate(loaded):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / steps)) / 2
        blurred, _ = tensors_from_batch(batch, config, device)
        optimiser.zero_grad()
        (held_loss(network, former, blurred) + FLAT_WEIGHT * flat_loss(network, step)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimiser.step()


def held_loss(network: MsanNetwork, former: MsanNetwork, blurred: Tensor) -> Tensor:
    """Mean absolute difference from the former output, in levels."""
    with torch.no_grad():
        target = former(blurred)
    return 255 * (network(blurred) - target).abs().mean()


def flat_loss(network: MsanNetwork, step: int) -> Tensor:
    """Squared error of flat colours beyond what is tolerated, in levels: its mean, and a hundredth of its maximum."""
    count, side_px = (16, 64) if step % 2 else (48, 32)
    colours = torch.randint(256, (count, 3, 1, 1)).float() / 255
    colours[::2] = colours[::2, :1]
    flat = colours.expand(count, 3, side_px, side_px).to(next(network.parameters()).device)
    excess = torch.relu(255 * (network(flat) - flat).abs() - TOLERATED_LEVELS).square()
    return excess.mean() + 0.01 * excess.amax((1, 2, 3)).mean()


def largest_error(network: MsanNetwork) -> int:
    """Largest difference of any pixel of a 96×96 flat grey after rounding, in levels, over every fifth grey."""
    device = next(network.parameters()).device
    worst = 0
    for level in range(0, 256, 5):
        with torch.inference_mode():
            output = network(torch.full((1, 3, 96, 96), level / 255, device=device))
        worst = max(worst, int(((output.clamp(0, 1) * 255).round() - level).abs().max()))
    return worst


if __name__ == "__main__":
    main()
