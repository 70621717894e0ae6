"""Training: Adam with warm-up and cosine annealing over synthetic motion blur; resumes exactly.

A run is a folder: ``train.json`` (its configuration), ``state.pt`` (weights, optimiser and step:
what a run goes on from), ``log.jsonl`` (a line every few steps) and, at the end,
``model.safetensors``. Each batch is a function of the seed and the step, so a run that was
stopped and resumed sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msan.blur import BlurSpec
from msan.checkpoint import CheckpointError, save_checkpoint
from msan.datasets import BlurredCrops, load_pictures
from msan.losses import LossName, loss_named
from msan.network import MsanNetwork, start_as_identity
from msan.spec import MSAN_S, ModelSpec
from msan_runtime.atomic import replacing, write_text
from msan_runtime.errors import MsanError

__all__ = ["Progress", "TrainConfig", "TrainError", "TrainStoppedError", "learning_rate_at", "train"]


class TrainError(MsanError):
    """A training run that cannot start or go on."""


class TrainStoppedError(MsanError):
    """Training was stopped as asked, and can go on."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training recipe. Everything that the result depends on, besides the pictures.

    Attributes:
        spec: the network.
        steps: optimiser steps.
        batch: crops a step.
        crop_px: side of the square crops, a multiple of 8.
        long_side_px: pictures are shrunk to this before cropping.
        learning_rate: after warm-up (Adam).
        learning_rate_end: at the last step, by cosine annealing.
        warmup_steps: of linear warm-up.
        clip_norm: bound on the norm of the gradient.
        loss: ``bce`` (Eq. 9) or ``mse``.
        seed: of the weights and of every batch.
        blur: what blur to train on.
    """

    spec: ModelSpec = MSAN_S
    steps: int = 7000
    batch: int = 8
    crop_px: int = 128
    long_side_px: int = 1024
    learning_rate: float = 1e-3
    learning_rate_end: float = 1e-6
    warmup_steps: int = 200
    clip_norm: float = 0.5
    loss: LossName = "bce"
    seed: int = 1414
    blur: BlurSpec = field(default_factory=BlurSpec)

    def __post_init__(self) -> None:
        if self.crop_px < 8 or self.crop_px % 8:
            raise TrainError(f"crop_px must be a multiple of 8, not {self.crop_px}")
        if not (0 < self.learning_rate < math.inf):
            raise TrainError(f"the learning rate must be a positive number, not {self.learning_rate}")
        if self.steps < 1 or self.batch < 1:
            raise TrainError(f"steps and batch must be at least 1, not {self.steps} and {self.batch}")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a running training tells: steps done of all, mean loss since the last report, learning rate."""

    step: int
    steps: int
    loss: float
    learning_rate: float


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up (Goyal et al.), then cosine annealing (§4.1)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    swing = config.learning_rate - config.learning_rate_end
    return config.learning_rate_end + swing * (1 + math.cos(math.pi * share)) / 2


def train(
    files: Sequence[Path],
    folder: Path,
    config: TrainConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    report_every: int = 20,
    save_every: int = 200,
) -> Path:
    """Train a network on sharp pictures with synthetic blur; go on where ``folder`` left off.

    Args:
        files: sharp pictures.
        folder: of the run; made if missing.
        config: the recipe. A run in ``folder`` may be resumed with another number of steps only.
        on_progress: called every ``report_every`` steps.
        should_stop: asked after each step; once it says yes, the state is saved and training ends.
        report_every: steps between log lines.
        save_every: steps between saved states.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        TrainStoppedError: if ``should_stop`` said so; the state was saved.
        TrainError: if ``folder`` holds a run of another recipe, or the loss is not a number.
        DatasetError: for pictures that cannot be trained on.
    """
    crops = _crops(files, config)
    _open_run(folder, config, len(crops.pictures))
    trainer = _Trainer(config)
    trainer.load(folder / "state.pt")
    started = time.perf_counter()
    losses: list[float] = []
    while trainer.step < config.steps:
        losses.append(trainer.take_step(*crops.batch_at(trainer.step)))
        stopping = should_stop is not None and should_stop()
        last = trainer.step == config.steps
        if last or trainer.step % report_every == 0:
            _report(trainer, losses, folder, time.perf_counter() - started, on_progress)
            losses.clear()
        if last or stopping or trainer.step % save_every == 0:
            trainer.save(folder / "state.pt")
        if stopping and not last:
            raise TrainStoppedError(f"stopped at step {trainer.step}, saved to {folder}: the same command goes on")
    save_checkpoint(trainer.network, folder / "model.safetensors", {"msan.recipe": json.dumps(config.to_dict())})
    return folder / "model.safetensors"


class _Trainer:
    """Network, optimiser and step: the state of a run."""

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.network = MsanNetwork(config.spec)
        start_as_identity(self.network)
        # channels_last is 1.2 to 2 times faster on a CPU and loses nothing on a GPU.
        self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.loss = loss_named(config.loss)
        self.step = 0

    def take_step(self, blurred: Tensor, sharp: Tensor) -> float:
        """One optimiser step; the loss before it.

        Raises:
            TrainError: if the loss or its gradient is not a finite number.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate_at(self.step, self.config)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.network(blurred.contiguous(memory_format=torch.channels_last)), sharp)
        self._check_finite("loss", loss)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self._check_finite("gradient", norm)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            raise TrainError(
                f"the {name} is {value.item()} at step {self.step}: "
                "train in another folder with a lower learning rate (this one keeps its recipe)"
            )

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step = int(state["step"])
        except Exception as error:
            # PyTorch's own words advise to load it unsafely.
            reason = type(error).__name__
            raise CheckpointError(f"cannot resume from {path} ({reason}). Remove it to start again") from error


def _crops(files: Sequence[Path], config: TrainConfig) -> BlurredCrops:
    empty = BlurredCrops(pictures=(), crop_px=config.crop_px, batch=config.batch, blur=config.blur, seed=config.seed)
    smallest = config.crop_px + 2 * empty.margin_px
    pictures = load_pictures(files, long_side_px=config.long_side_px, short_side_px=smallest)
    return dataclasses.replace(empty, pictures=pictures)


def _open_run(folder: Path, config: TrainConfig, picture_count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.json"
    ours: dict[str, Any] = json.loads(json.dumps({"config": config.to_dict(), "pictures": picture_count}))
    if path.exists():
        theirs = _recipe_in(path)
        different = [k for k, v in ours["config"].items() if k != "steps" and theirs["config"].get(k) != v]
        different += ["number of pictures"] if theirs.get("pictures") != picture_count else []
        if different:
            raise TrainError(
                f"{folder} holds a run with another {', '.join(different)}. "
                "Resume with the same values, or choose another folder"
            )
    write_text(path, json.dumps(ours, indent=2) + "\n")


def _recipe_in(path: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(path.read_text())
        return {**recipe, "config": dict(recipe["config"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{path} is no recipe of a run ({error!r}). Choose another folder") from error


def _report(
    trainer: _Trainer,
    losses: list[float],
    folder: Path,
    seconds: float,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    progress = Progress(
        step=trainer.step,
        steps=trainer.config.steps,
        loss=sum(losses) / len(losses),
        learning_rate=learning_rate_at(trainer.step - 1, trainer.config),
    )
    line = {
        "step": progress.step,
        "loss": round(progress.loss, 6),
        "lr": progress.learning_rate,
        "s": round(seconds, 1),
    }
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    if on_progress is not None:
        on_progress(progress)
