"""Checkpoints and bundles that several rooms are tested on: small networks whose attention has a gain."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msan.spec import ModelSpec

if TYPE_CHECKING:
    from msan.checkpoint import Checkpoint  # needs PyTorch, which tests of the runtime do without

CheckpointMaker = Callable[[ModelSpec], "Checkpoint"]


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Tests, and the commands that they start, leave the user's own cache folder alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointMaker:
    """A maker of checkpoint files with seeded random weights, λ well away from its initial 0."""
    import torch

    from msan.checkpoint import load_checkpoint, save_checkpoint
    from msan.network import MsanNetwork

    def make(spec: ModelSpec) -> Checkpoint:
        torch.manual_seed(7)
        network = MsanNetwork(spec)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("gamma"):
                    parameter.fill_(0.8)
        path = tmp_path_factory.mktemp("checkpoint") / "network.safetensors"
        save_checkpoint(network, path, {})
        return load_checkpoint(path)

    return make


@pytest.fixture(scope="session")
def tiny(make_checkpoint: CheckpointMaker) -> Checkpoint:
    """Two stages, eight base channels, one ResBlock a level, with attention."""
    return make_checkpoint(ModelSpec(stages=2, base_channels=8, resblocks=1))


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``tiny`` for one RTX family; tests copy it before they change it."""
    from msan_export.acceptance.cases import sample_cases
    from msan_export.bundle import deploy
    from msan_export.engine import EngineSpec
    from msan_runtime.targets import capabilities_named

    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return deploy(tiny, folder, EngineSpec(capabilities=capabilities_named("rtx30")), sample_cases()).folder
