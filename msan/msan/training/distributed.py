"""Processes that train together (``torchrun``): who this one is, and sums over all of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from msan_runtime.errors import MsanError

__all__ = ["DeviceError", "Team", "TeamError", "device_named", "join_team"]


class DeviceError(MsanError):
    """A device that was asked for and is not here."""


class TeamError(MsanError):
    """Another process of the team is gone."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes of a training: this one's rank, how many there are, and its device."""

    rank: int
    processes: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The sums of ``values`` over all processes.

        Raises:
            TeamError: if one of them has ended.
        """
        if self.processes == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            raise TeamError(f"process {self.rank} stops: another one has ended, see its message") from error
        return tensor.tolist()

    def union(self, items: Mapping[str, str]) -> dict[str, str]:
        """The items of all processes."""
        if self.processes == 1:
            return dict(items)
        gathered: list[Any] = [None] * self.processes
        dist.all_gather_object(gathered, dict(items))
        return {name: value for one in gathered for name, value in one.items()}


def device_named(name: str | None) -> torch.device:
    """The device called ``name`` (``cpu``, ``cuda``, ``cuda:1``); a GPU where there is one if left out.

    Raises:
        DeviceError: if it is not here.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cpu" or chosen.partition(":")[0] == "cuda":
        try:
            device = torch.device(chosen)
            torch.empty(1, device=device)
            return device
        except (RuntimeError, AssertionError):
            pass
    raise DeviceError(f"no device {chosen!r} here. There are: {', '.join(_devices())}")


@contextmanager
def join_team(device: str | None = None) -> Generator[Team]:
    """Join the processes that ``torchrun`` started (NCCL on GPUs, Gloo on CPUs); alone if it did not."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield Team(rank=0, processes=1, device=device_named(device))
        return
    own = device_named(device)
    if own.type == "cuda":
        own = device_named(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Team(rank=dist.get_rank(), processes=processes, device=own)
    finally:
        # What is left of the group's users must go before it: Gloo may wait forever for what goes after.
        gc.collect()
        dist.destroy_process_group()


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
