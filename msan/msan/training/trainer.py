"""Trainer: network, optimiser and step, the state of a training that one step changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msan.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from msan.network import MsanNetwork, start_as_identity
from msan.training.distributed import Team
from msan.training.losses import loss_named
from msan.training.recipe import RecipeError, TrainConfig
from msan.training.schedule import Schedule
from msan_runtime.errors import MsanError

__all__ = ["NotFiniteError", "StepResult", "Trainer"]

AMP_TYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NotFiniteError(MsanError):
    """The loss, its gradient or a weight is no finite number any more."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Loss before the step and norm of its gradient before clipping, of this process's part of the batch."""

    loss: float
    gradient_norm: float


class Trainer:
    """What a training changes at each step.

    Attributes:
        network: the network that is trained.
        step: optimiser steps done.
    """

    def __init__(self, config: TrainConfig, schedule: Schedule, team: Team) -> None:
        self.config = config
        self.schedule = schedule
        self.team = team
        self.step = 0
        self.network = _initial_network(config).to(team.device)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = _average(self.network, config.ema_decay)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.epsilon
        )
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=config.amp == "fp16")
        self.loss = loss_named(config.loss)
        self._forward = _wrapped(self.network, config, team)

    @property
    def kept(self) -> MsanNetwork:
        """The network whose weights are worth keeping: the moving average, where there is one."""
        averaged = self.network if self.average is None else self.average.module
        assert isinstance(averaged, MsanNetwork)
        return averaged

    def take_step(self, blurred: Tensor, sharp: Tensor) -> StepResult:
        """One optimiser step on float32 N×3×H×W tensors in [0, 1].

        Raises:
            NotFiniteError: if the loss or its gradient is not a finite number; the weights are as before.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.at(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(blurred, sharp)
        total = self.team.sum(float(loss.detach()))[0]
        self._check_finite("loss", total)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm or math.inf))
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            # A scaled FP16 gradient may overflow: the scaler leaves that step out and lowers its scale.
            self._check_finite("gradient", norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1
        return StepResult(loss=total / self.team.processes, gradient_norm=norm)

    def check_weights(self) -> None:
        """Raise NotFiniteError if a weight is no finite number: such weights are not worth keeping."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            raise NotFiniteError(f"a weight is no finite number after step {self.step}")

    def state(self) -> dict[str, Any]:
        """Everything that :meth:`load_state` needs to go on to the bit."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            CheckpointError: if it is not the state of such a training.
        """
        try:
            self.network.load_state_dict(state["network"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            self.step = int(state["step"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = type(error).__name__
            raise CheckpointError(f"the saved state is not of this run ({reason}). Remove it to start again") from error

    def close(self) -> None:
        """Let go of what joins this process to the others; it trains no more."""
        self._forward = self.network

    def _loss(self, blurred: Tensor, sharp: Tensor) -> Tensor:
        if self.config.channels_last:
            blurred = blurred.contiguous(memory_format=torch.channels_last)
        amp = self.config.amp
        with torch.autocast(self.team.device.type, dtype=AMP_TYPES[amp], enabled=amp != "off"):
            deblurred: Tensor = self._forward(blurred)
        return self.loss(deblurred.float(), sharp)

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise NotFiniteError(f"the {name} is {value} at step {self.step + 1}")


def _initial_network(config: TrainConfig) -> MsanNetwork:
    torch.manual_seed(config.seed)
    network = MsanNetwork(config.spec)
    if config.identity_start:
        start_as_identity(network)
    if config.init is not None:
        checkpoint = load_checkpoint(find_checkpoint(config.init))
        if checkpoint.spec != config.spec:
            raise RecipeError(
                f"{checkpoint.path} is a {checkpoint.spec.name} network, and the recipe trains {config.spec.name}: "
                "choose another init, or the other network"
            )
        network.load_state_dict(dict(checkpoint.state))
    return network


def _average(network: MsanNetwork, decay: float) -> AveragedModel | None:
    if decay == 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _wrapped(network: MsanNetwork, config: TrainConfig, team: Team) -> nn.Module:
    wrapped: nn.Module = network
    if team.processes > 1:
        wrapped = DistributedDataParallel(network)
    # The network itself stays as it is: its state dict keeps the published keys.
    return torch.compile(wrapped) if config.torch_compile else wrapped  # pyright: ignore[reportReturnType]
