"""PyTorch as a competitor of ``msan bench``: the network in eager FP32, in either memory layout."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from msan.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, network_from_checkpoint
from msan.network import MsanNetwork
from msan.spec import ModelSpec
from msan_runtime.attention import Attention
from msan_runtime.bench.competitors import BenchError, Entrant, Setup
from msan_runtime.contract import PictureArray
from msan_runtime.manifest import Manifest

__all__ = ["open_channels_last", "open_pytorch"]


@contextmanager
def open_pytorch(setup: Setup) -> Generator[Entrant]:
    """PyTorch, eager, FP32, tensors laid out as they come (N×C×H×W).

    Raises:
        BenchError: if the checkpoint is of another network than the bundle.
    """
    with _opened(setup, torch.contiguous_format) as entrant:
        yield entrant


@contextmanager
def open_channels_last(setup: Setup) -> Generator[Entrant]:
    """PyTorch, eager, FP32, channels last, which is faster on most processors.

    Raises:
        BenchError: if the checkpoint is of another network than the bundle.
    """
    with _opened(setup, torch.channels_last) as entrant:
        yield entrant


@contextmanager
def _opened(setup: Setup, layout: torch.memory_format) -> Generator[Entrant]:
    before = torch.get_num_threads()
    torch.set_num_threads(setup.threads)
    try:
        network, same_weights = _network(setup)
        network = network.eval().to(memory_format=layout)  # pyright: ignore[reportCallIssue]

        def run(picture: PictureArray) -> PictureArray:
            with torch.inference_mode():
                blurred = torch.from_numpy(picture)[None].permute(0, 3, 1, 2).contiguous(memory_format=layout)
                return _picture(network(blurred.float() / 255))

        yield Entrant(run=run, device=f"CPU, PyTorch {torch.__version__}", same_weights=same_weights)
    finally:
        torch.set_num_threads(before)


def _picture(deblurred: Tensor) -> PictureArray:
    """uint8 H×W×3 of a 1×3×H×W tensor, as the deployed graph makes it."""
    levels = (deblurred.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels[0].permute(1, 2, 0).contiguous().numpy()


def _network(setup: Setup) -> tuple[MsanNetwork, bool]:
    """The network to time, and whether its weights are the bundle's.

    Times do not depend on weights: where the bundle's checkpoint is not at hand, an untrained network serves.
    """
    manifest = setup.bundle.manifest
    spec, attention = _spec(manifest), Attention.parse(manifest.attention)
    checkpoint = _checkpoint(setup)
    if checkpoint is not None and checkpoint.spec != spec:
        raise BenchError(
            f"{checkpoint.path} is a {checkpoint.spec.name} network, the bundle's is {spec.name}. "
            "Give the checkpoint that the bundle was made of"
        )
    if checkpoint is None:
        return MsanNetwork(spec, attention), False
    same = checkpoint.sha256 == manifest.provenance.get("checkpoint_sha256")
    return network_from_checkpoint(checkpoint, attention), same


def _checkpoint(setup: Setup) -> Checkpoint | None:
    """The checkpoint given, or the shipped one of the bundle's name if the bundle was made of it."""
    if setup.checkpoint is not None:
        return load_checkpoint(setup.checkpoint)
    manifest = setup.bundle.manifest
    path = find_checkpoint(manifest.name)
    shipped = load_checkpoint(path) if path.is_file() else None
    matches = shipped is not None and shipped.sha256 == manifest.provenance.get("checkpoint_sha256")
    return shipped if matches else None


def _spec(manifest: Manifest) -> ModelSpec:
    values = manifest.spec
    try:
        return ModelSpec(
            stages=int(values["stages"]),
            base_channels=int(values["base_channels"]),
            resblocks=int(values["resblocks"]),
            attention=bool(values["attention"]),
        )
    except KeyError as error:
        raise BenchError(f"the manifest's spec has no {error.args[0]}: PyTorch cannot build the network") from error
