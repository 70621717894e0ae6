"""What a run on a cluster is asked for: where Ray is, how many workers, what each of them has and does."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from msan_runtime.batch import FileOptions
from msan_runtime.errors import MsanError
from msan_runtime.loading import LoadOptions

__all__ = ["ClusterError", "RayOptions", "WorkerOptions", "worker_range_from_text"]


ADDRESS = re.compile(r"(\S+):([0-9]{1,5})")


class ClusterError(MsanError):
    """A cluster that is not there, or whose nodes cannot do what is asked."""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where Ray is, and the pool of workers.

    Attributes:
        address: ``local`` for this machine alone, ``auto`` for the cluster that this machine belongs to, or the
            ``HOST:PORT`` of a cluster's head.
        workers: fewest and most of them; as many as the cluster has room for if left out.
        gpus: of each worker; one where the cluster has any, if left out.
        cpus: of each worker; without GPUs all of the smallest node's, if left out.
    """

    address: str = "local"
    workers: tuple[int, int] | None = None
    gpus: float | None = None
    cpus: float | None = None

    def __post_init__(self) -> None:
        if self.address.startswith("ray://"):
            raise ClusterError(
                f"{self.address} is Ray Client's, which Ray Data does not run over. "
                "Give the command on a node of the cluster, with --ray auto"
            )
        if self.address not in ("local", "auto") and ADDRESS.fullmatch(self.address) is None:
            raise ClusterError(f"--ray {self.address} is no address. Give local, auto or the head's HOST:PORT")
        for name, value in (("--ray-gpus", self.gpus), ("--ray-cpus", self.cpus)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ClusterError(f"{name} {value:g} is no number of them. Give 0 or more")

    @property
    def head(self) -> tuple[str, int] | None:
        """Host and port of the cluster's head, if they are given."""
        found = ADDRESS.fullmatch(self.address)
        return (found[1].strip("[]"), int(found[2])) if found else None


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What each worker loads and how it treats files. It travels to other machines: everything in it is plain.

    Attributes:
        loading: of the deblurrer.
        model_sha256: what the bundle must compute, so that all nodes have the same.
        files: how files are read and written.
        threads: that read, and as many that write; by the number of cores if left out.
        visible: local files and folders that every node must see.
    """

    loading: LoadOptions
    model_sha256: str
    files: FileOptions = field(default_factory=FileOptions)
    threads: int | None = None
    visible: tuple[str, ...] = ()


def worker_range_from_text(text: str) -> tuple[int, int]:
    """Fewest and most workers of a text like ``4`` or ``1:8``.

    Raises:
        ClusterError: if it is none.
    """
    match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", text.strip(), re.ASCII)
    fewest, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= fewest <= most:
        raise ClusterError(f"--ray-workers {text!r} is no number of workers. Write one like 4, or a range like 1:8")
    return fewest, most
