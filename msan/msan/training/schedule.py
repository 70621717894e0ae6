"""The learning rate of each step: linear warm-up, then cosine annealing (§4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msan.training.recipe import TrainConfig

__all__ = ["Schedule", "plan_schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up (Goyal et al.) to ``peak`` over ``warmup_steps``, then a half cosine to ``end``, its last step."""

    steps: int
    warmup_steps: int
    peak: float
    end: float

    def at(self, step: int) -> float:
        """Learning rate of step ``step``, from 0 to ``steps - 1``."""
        if step < self.warmup_steps:
            return self.peak * ((step + 1) / self.warmup_steps)
        span = self.steps - 1 - self.warmup_steps
        share = min(1.0, (step - self.warmup_steps) / span) if span > 0 else 1.0
        left = (1 + math.cos(math.pi * share)) / 2
        # Rounding must not lift a rate over the peak; both ends are exact.
        return self.peak if left == 1 else min(max(self.peak, self.end), self.end + (self.peak - self.end) * left)


def plan_schedule(config: TrainConfig, *, pictures: int, processes: int) -> Schedule:
    """The schedule of a recipe: epochs become steps by the number of pictures and of processes.

    Where ``steps`` stands in place of ``epochs``, warm-up keeps its share of the run; it leaves the last step out.
    """
    steps = config.steps
    if steps is None:
        steps = math.ceil(config.epochs * pictures / (config.batch * processes))
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(steps * min(1.0, config.warmup_epochs / config.epochs))
    return Schedule(
        steps=steps, warmup_steps=min(warmup, steps - 1), peak=config.learning_rate, end=config.learning_rate_end
    )
