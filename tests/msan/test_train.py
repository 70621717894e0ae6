"""Training: resumes to the bit, learns, and refuses to mix runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msan.blur import BlurSpec
from msan.checkpoint import CheckpointError, load_checkpoint, network_from_checkpoint
from msan.datasets import BlurredCrops, DatasetError, load_pictures
from msan.losses import bce_loss
from msan.spec import ModelSpec
from msan.train import Progress, TrainConfig, TrainError, learning_rate_at, train

TINY = TrainConfig(
    spec=ModelSpec(stages=1, base_channels=4, resblocks=1),
    steps=9,
    batch=2,
    crop_px=32,
    warmup_steps=3,
    blur=BlurSpec(length_px=(1.0, 4.0), instants=5),
)


class StoppedError(Exception):
    """What stops a run in these tests, like Ctrl-C."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures of blocks, whose edges blur."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / "a.png", folder / "b.png"]
    for seed, file in enumerate(files):
        blocks = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(file)
    return files


def stop_at(step: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise StoppedError

    return stop


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    one, other = (torch.load(folder / "state.pt", weights_only=True) for folder in (ours, theirs))
    for key, moments in one["optimiser"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, other["optimiser"]["state"][key][name])


@pytest.mark.parametrize("stopped", [1, 4, 7])
def test_a_run_stopped_and_resumed_is_an_uninterrupted_one_to_the_bit(
    stopped: int, pictures: list[Path], tmp_path: Path
) -> None:
    train(pictures, tmp_path / "whole", TINY)
    with pytest.raises(StoppedError):
        train(pictures, tmp_path / "parts", TINY, on_progress=stop_at(stopped), report_every=1, save_every=3)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    # Resuming must not lean on the random state of the process.
    torch.manual_seed(99)
    train(pictures, tmp_path / "parts", TINY, save_every=3)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_resumed_run_starts_at_the_saved_step(pictures: list[Path], tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.raises(StoppedError):
        train(pictures, tmp_path, TINY, on_progress=stop_at(5), report_every=1, save_every=2)
    train(pictures, tmp_path, TINY, on_progress=lambda p: steps.append(p.step), report_every=1)
    assert steps == [5, 6, 7, 8, 9]


def test_a_finished_run_is_left_as_it_is(pictures: list[Path], tmp_path: Path) -> None:
    data = train(pictures, tmp_path, TINY).read_bytes()
    reports: list[Progress] = []
    assert train(pictures, tmp_path, TINY, on_progress=reports.append).read_bytes() == data
    assert reports == []


def test_a_run_may_be_lengthened(pictures: list[Path], tmp_path: Path) -> None:
    train(pictures, tmp_path, TINY)
    reports: list[Progress] = []
    train(pictures, tmp_path, dataclasses.replace(TINY, steps=11), on_progress=reports.append)
    assert [(p.step, p.steps) for p in reports] == [(11, 11)]
    assert json.loads((tmp_path / "train.json").read_text())["config"]["steps"] == 11


def test_the_loss_falls_under_that_of_the_blurred_picture(pictures: list[Path], tmp_path: Path) -> None:
    blur = BlurSpec(length_px=(3.0, 4.0), roll_px=0.0, wander=0.0, noise_levels=0.0, sharp_share=0.0, instants=5)
    config = dataclasses.replace(TINY, steps=60, learning_rate=5e-3, warmup_steps=5, batch=4, blur=blur)
    reports: list[Progress] = []
    model = train(pictures, tmp_path, config, on_progress=reports.append, report_every=15)
    assert reports[-1].loss < 0.97 * reports[0].loss
    crops = BlurredCrops(pictures=(), crop_px=32, batch=8, blur=blur, seed=5)
    loaded = load_pictures(pictures, long_side_px=96, short_side_px=32)
    blurred, sharp = dataclasses.replace(crops, pictures=loaded).batch_at(0)
    with torch.inference_mode():
        deblurred = network_from_checkpoint(load_checkpoint(model))(blurred)
    assert float(bce_loss(deblurred, sharp)) < 0.97 * float(bce_loss(blurred, sharp))


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_the_first_step_reports_the_loss_of_the_blurred_picture(
    loss: Any, pictures: list[Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, loss=loss, steps=1)
    reports: list[Progress] = []
    train(pictures, tmp_path, config, on_progress=reports.append)
    crops = BlurredCrops(pictures=(), crop_px=32, batch=2, blur=TINY.blur, seed=TINY.seed)
    loaded = load_pictures(pictures, long_side_px=96, short_side_px=32)
    blurred, sharp = dataclasses.replace(crops, pictures=loaded).batch_at(0)
    expected = bce_loss(blurred, sharp) if loss == "bce" else (blurred - sharp).square().mean()
    assert reports[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_a_run_leaves_its_recipe_its_log_and_a_checkpoint_that_loads(pictures: list[Path], tmp_path: Path) -> None:
    path = train(pictures, tmp_path, TINY, report_every=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "model.safetensors", "state.pt", "train.json"]
    recipe = json.loads((tmp_path / "train.json").read_text())
    assert recipe == {"config": json.loads(json.dumps(TINY.to_dict())), "pictures": 2}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 9]
    checkpoint = load_checkpoint(path)
    assert checkpoint.spec == TINY.spec
    assert json.loads(checkpoint.metadata["msan.recipe"]) == recipe["config"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"loss": "mse", "batch": 1}, "batch, loss"),
        ({"spec": ModelSpec(stages=2, base_channels=4, resblocks=1)}, "spec"),
        ({"blur": BlurSpec(length_px=(1.0, 5.0), instants=5)}, "blur"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(
    changes: dict[str, Any], named: str, pictures: list[Path], tmp_path: Path
) -> None:
    short = dataclasses.replace(TINY, steps=1)
    train(pictures, tmp_path, short)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TrainError, match=f"a run with another {named}.*choose another folder"):
        train(pictures, tmp_path, dataclasses.replace(short, **changes))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["empty", "text", "half", "other"])
def test_a_damaged_state_is_named_with_what_to_do(damage: str, pictures: list[Path], tmp_path: Path) -> None:
    train(pictures, tmp_path, TINY)
    state = tmp_path / "state.pt"
    data = state.read_bytes()
    if damage == "other":
        torch.save({"step": 3}, state)
    else:
        state.write_bytes({"empty": b"", "text": b"no state\n" * 9, "half": data[: len(data) // 2]}[damage])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*state\.pt .*Remove it to start again") as raised:
        train(pictures, tmp_path, TINY)
    # PyTorch's own message advises just that.
    assert "Re-running" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3}'])
def test_a_damaged_recipe_is_named_with_what_to_do(text: str, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(TrainError, match=r"train\.json is no recipe.*Choose another folder"):
        train(pictures, tmp_path, TINY)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_saved_state(
    pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def sick_loss(deblurred: Tensor, sharp: Tensor) -> Tensor:
        return bce_loss(deblurred, sharp) * (math.nan if next(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr("msan.train.loss_named", lambda name: {"bce": sick_loss}[name])
        with pytest.raises(TrainError, match=r"the loss is nan at step 5: .* lower learning rate"):
            train(pictures, tmp_path / "parts", TINY, save_every=2)
    train(pictures, tmp_path / "parts", TINY)
    train(pictures, tmp_path / "whole", TINY)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_pictures_smaller_than_a_crop_with_its_margin_are_refused(pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of 2 pictures has a side of 112 px"):
        train(pictures, tmp_path, dataclasses.replace(TINY, crop_px=96))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_px": 12}, "multiple of 8, not 12"),
        ({"crop_px": 0}, "multiple of 8, not 0"),
        ({"steps": 0}, "steps and batch must be at least 1, not 0 and 8"),
        ({"batch": 0}, "not 7000 and 0"),
    ],
)
def test_impossible_recipes_are_refused_with_the_value_seen(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        TrainConfig(**changes)


def test_the_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    config = TrainConfig(steps=1000, warmup_steps=100, learning_rate=1e-3, learning_rate_end=1e-6)

    def cosine(step: int) -> float:
        return 1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (step - 100) / 900))

    assert learning_rate_at(0, config) == pytest.approx(1e-5)
    assert learning_rate_at(49, config) == pytest.approx(5e-4)
    assert learning_rate_at(99, config) == pytest.approx(1e-3)
    assert learning_rate_at(100, config) == pytest.approx(1e-3)
    assert learning_rate_at(550, config) == pytest.approx((1e-3 + 1e-6) / 2)
    for step in (101, 333, 999):
        assert learning_rate_at(step, config) == pytest.approx(cosine(step))
    assert learning_rate_at(999, config) == pytest.approx(1e-6, abs=1e-8)
    assert learning_rate_at(1000, config) == pytest.approx(1e-6)


def test_the_learning_rate_rises_then_falls() -> None:
    config = TrainConfig(steps=500, warmup_steps=50)
    rates = [learning_rate_at(step, config) for step in range(500)]
    assert rates[:50] == sorted(rates[:50])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert max(rates) == config.learning_rate


@pytest.mark.parametrize("warmup_steps", [0, 5, 9])
def test_any_warm_up_gives_rates_within_bounds(warmup_steps: int) -> None:
    config = TrainConfig(steps=5, warmup_steps=warmup_steps)
    for step in range(5):
        assert 0 < learning_rate_at(step, config) <= config.learning_rate
