"""Training on a GPU: mixed precision and compilation learn, and a stopped run goes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

import torch
from PIL import Image

from msan.checkpoint import load_checkpoint
from msan.data.loader import DataOptions
from msan.degradation.blur import BlurSpec
from msan.spec import ModelSpec
from msan.training.distributed import Team
from msan.training.recipe import TrainConfig
from msan.training.train import Progress, TrainOptions, TrainResult, train

pytestmark = pytest.mark.gpu

CONFIG = TrainConfig(
    spec=ModelSpec(stages=2, base_channels=16, resblocks=1),
    identity_start=True,
    steps=150,
    warmup_steps=10,
    learning_rate=2e-3,
    batch=8,
    crop_px=64,
    validation_px=64,
    validate_every=50,
    held_back=4,
    clip_norm=0.5,
    ema_decay=0.9,
    blur=BlurSpec(length_px=(3.0, 6.0), roll_px=0.5, zoom_px=0.5, sharp_share=0.0, noise_levels=0.0, instants=7),
)


class StoppedError(Exception):
    """What stops a run in these tests."""


@pytest.fixture(scope="module", autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of blocks, whose edges blur."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(8):
        blocks = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(blocks.repeat(6, 0).repeat(6, 1)).save(folder / f"{seed}.png")
    return folder


def say_nothing(text: str) -> None:
    del text


def run(pictures: Path, folder: Path, config: TrainConfig, **options: Any) -> TrainResult:
    team = Team(rank=0, processes=1, device=torch.device("cuda"))
    return train([pictures], folder, config, team, TrainOptions(data=DataOptions(announce=say_nothing), **options))


def told(folder: Path, kind: str) -> dict[int, Any]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[kind] for line in lines if kind in line}


def stop_at(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise StoppedError

    return stop


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # from the compiler's own modules
@pytest.mark.parametrize(("amp", "compiled"), [("off", False), ("bf16", False), ("fp16", False), ("fp16", True)])
def test_a_network_learns_to_deblur(amp: Any, compiled: bool, pictures: Path, tmp_path: Path) -> None:
    result = run(pictures, tmp_path, dataclasses.replace(CONFIG, amp=amp, torch_compile=compiled))
    last = told(tmp_path, "validation")[150]
    assert last["deblurred_db"] > last["blurred_db"] + 2
    assert result.best is not None
    assert load_checkpoint(result.best).spec == CONFIG.spec


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_stopped_run_goes_on_where_it_was(amp: Any, pictures: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, amp=amp, steps=20)
    run(pictures, tmp_path / "whole", config, report_every=1)
    with pytest.raises(StoppedError):
        run(pictures, tmp_path / "parts", config, report_every=1, save_every=8, on_progress=stop_at(13))
    resumed: list[int] = []
    run(pictures, tmp_path / "parts", config, report_every=1, on_progress=lambda p: resumed.append(p.step))
    assert resumed == list(range(9, 21))
    # A GPU adds up in another order each time: near, not to the bit.
    whole, parts = told(tmp_path / "whole", "loss"), told(tmp_path / "parts", "loss")
    assert parts == pytest.approx(whole, rel=0.02)


def test_the_gpu_takes_the_steps_that_the_cpu_takes(pictures: Path, tmp_path: Path) -> None:
    # Noise comes from each device's own generator.
    config = dataclasses.replace(CONFIG, steps=5, batch=2)
    run(pictures, tmp_path / "gpu", config, report_every=1)
    alone = Team(rank=0, processes=1, device=torch.device("cpu"))
    options = TrainOptions(data=DataOptions(announce=say_nothing), report_every=1)
    train([pictures], tmp_path / "cpu", config, alone, options)
    assert told(tmp_path / "gpu", "loss") == pytest.approx(told(tmp_path / "cpu", "loss"), rel=0.02)
