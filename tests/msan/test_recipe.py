"""Training recipes: the paper's is the default, and every number is an option or a line in a TOML file."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from msan.commands.train import train as train_command
from msan.degradation.blur import BlurSpec
from msan.spec import ModelSpec
from msan.training.recipe import RecipeError, TrainConfig, load_recipe, recipe_from_dict, recipe_names
from msan_runtime.errors import MsanError

# A value of each setting that is not the default.
OTHER: dict[str, Any] = {
    "network": {"stages": 2, "base_channels": 16, "resblocks": 3, "attention": False},
    "init": "msan-s",
    "identity_start": True,
    "loss": "mse",
    "epochs": 7.5,
    "steps": 11,
    "batch": 3,
    "crop_px": 64,
    "learning_rate": 3e-4,
    "learning_rate_end": 1e-7,
    "warmup_epochs": 2.0,
    "warmup_steps": 5,
    "betas": [0.8, 0.99],
    "epsilon": 1e-7,
    "clip_norm": 0.25,
    "ema_decay": 0.5,
    "amp": "bf16",
    "channels_last": False,
    "torch_compile": True,
    "seed": 3,
    "long_side_px": 512,
    "candidates": 2,
    "layout": "realblur-j",
    "pair_share": 0.25,
    "flat_share": 0.125,
    "blur": {"length_px": [2.0, 9.0], "instants": 9},
    "held_back": 4,
    "validate_every": 10,
    "validation_px": 128,
}


def toml(values: Mapping[str, Any]) -> str:
    """TOML of these values: JSON's scalars and lists are TOML too; a setting that is ``None`` is left out."""
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            table = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{key} = {{{table}}}")
        elif value is not None:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


def test_the_default_is_the_papers_recipe() -> None:
    config = TrainConfig()
    assert config.spec == ModelSpec(stages=4, base_channels=32, resblocks=4, attention=True)
    assert (config.loss, config.epochs, config.steps, config.batch, config.crop_px) == ("bce", 3000, None, 8, 256)
    assert (config.learning_rate, config.learning_rate_end, config.betas) == (1e-4, 1e-6, (0.9, 0.999))
    assert (config.clip_norm, config.ema_decay, config.amp, config.identity_start) == (0, 0, "off", False)


def test_the_shipped_file_of_the_paper_is_the_default() -> None:
    assert load_recipe("paper") == TrainConfig()


def test_every_shipped_recipe_loads() -> None:
    assert set(recipe_names()) >= {"paper", "msan-s", "msan-gpu"}
    for name in recipe_names():
        assert isinstance(load_recipe(name), TrainConfig)


def test_every_setting_can_be_a_line_of_a_file(tmp_path: Path) -> None:
    names = {"network" if field.name == "spec" else field.name for field in dataclasses.fields(TrainConfig)}
    assert names == OTHER.keys()
    (tmp_path / "all.toml").write_text(toml(OTHER))
    config = load_recipe(str(tmp_path / "all.toml"))
    for field in dataclasses.fields(TrainConfig):
        assert getattr(config, field.name) != getattr(TrainConfig(), field.name), field.name
    assert recipe_from_dict(tomllib.loads(toml(config.to_dict()))) == config


RATES = st.floats(1e-9, 1.0)
SHARES = st.floats(0, 1)
CONFIGS = st.builds(
    TrainConfig,
    spec=st.builds(ModelSpec, stages=st.integers(1, 4), base_channels=st.integers(1, 64), attention=st.booleans()),
    init=st.none() | st.text(st.characters(codec="ascii", exclude_categories=["C"])),
    loss=st.sampled_from(["bce", "mse"]),
    epochs=st.floats(0.01, 1e4),
    steps=st.none() | st.integers(1, 10**7),
    batch=st.integers(1, 64),
    crop_px=st.integers(1, 99).map(lambda n: 8 * n),
    learning_rate=RATES,
    learning_rate_end=RATES,
    warmup_steps=st.none() | st.integers(0, 10**5),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
    ema_decay=st.floats(0, 0.9999),
    amp=st.sampled_from(["off", "bf16", "fp16"]),
    seed=st.integers(0, 2**63 - 1),
    layout=st.none() | st.sampled_from(["gopro", "gopro-gamma", "hide", "realblur-j", "realblur-r", "pairs"]),
    pair_share=st.none() | SHARES,
    flat_share=SHARES,
    blur=st.builds(BlurSpec, length_px=st.tuples(SHARES, st.floats(1, 40)), instants=st.integers(2, 50)),
    held_back=st.sampled_from([0, 2, 20]),
)


@given(CONFIGS)
def test_a_recipe_comes_back_from_toml_and_from_json(config: TrainConfig) -> None:
    assert recipe_from_dict(tomllib.loads(toml(config.to_dict()))) == config
    assert recipe_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize = 4", "unknown setting batchsize. There are: .*batch, .*network"),
        ("[blur]\nlength = 3", "unknown setting blur.length. There are: .*length_px"),
        ("network = {layers = 3}", "unknown setting network.layers. There are: .*stages"),
        ("network = 'large'", "no network named 'large'"),
        ("network = 4", "network must be a table, not 4"),
        ("blur = 4", "blur must be a table, not 4"),
        ("network = {stages = 0}", "stages must be a whole number of at least 1, not 0"),
        ("batch = '4'", "batch must be a whole number, not '4'"),
        ("batch = 4.0", "batch must be a whole number, not 4.0"),
        ("batch = true", "batch must be a whole number, not True"),
        ("learning_rate = true", "learning_rate must be a number, not True"),
        ("channels_last = 1", "channels_last must be true or false, not 1"),
        ("init = 3", "init must be text, not 3"),
        ("loss = 'l1'", "loss must be one of bce, mse, not 'l1'"),
        ("amp = true", "amp must be one of off, bf16, fp16, not True"),
        ("layout = 'reds'", "layout must be one of gopro, .*pairs, not 'reds'"),
        ("betas = 0.9", "betas must be 2 numbers, not 0.9"),
        ("betas = [0.9]", r"betas must be 2 numbers, not \[0.9\]"),
        ("betas = [0.9, 'b']", "betas must be a number, not 'b'"),
        ("betas = [0.9, 1.0]", r"betas must be two numbers in \[0, 1\)"),
        ("blur = {length_px = [9, 3]}", "length_px must be"),
        ("crop_px = 100", "crop_px must be a multiple of 8, not 100"),
        ("crop_px = 0", "crop_px must be a multiple of 8, not 0"),
        ("validation_px = 60", "validation_px must be a multiple of 8, not 60"),
        ("batch = 0", "batch must be at least 1, not 0"),
        ("steps = 0", "steps must be at least 1, not 0"),
        ("epochs = 0", "epochs must be a positive number, not 0"),
        ("epochs = inf", "epochs must be a positive number, not inf"),
        ("learning_rate = nan", "learning_rate must be a positive number, not nan"),
        ("learning_rate = 1e39", "learning_rate must be at most 1e.30, not 1e.39"),
        ("learning_rate_end = -1e-6", "learning_rate_end must be at least 0, not -1e-06"),
        ("warmup_steps = -1", "warmup_steps must be at least 0, not -1"),
        ("clip_norm = nan", "clip_norm must be at least 0, not nan"),
        ("ema_decay = 1.0", "ema_decay must be under 1, not 1.0"),
        ("pair_share = 1.5", r"pair_share must be in \[0, 1\], not 1.5"),
        ("flat_share = nan", r"flat_share must be in \[0, 1\], not nan"),
        ("held_back = 1", "held_back must be 0 or at least 2, not 1"),
        ("seed = -1", "seed must be a whole number from 0 to .*, not -1"),
        ("seed = 99999999999999999999", "seed must be a whole number from 0 to .*, not 99999999999999999999"),
        ("batch = ", "is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words) as raised:
        load_recipe(str(path))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("damage", ["missing", "folder", "binary"])
def test_a_recipe_that_cannot_be_read_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if damage == "folder":
        path.mkdir()
    if damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    words = r"is not TOML" if damage == "binary" else "neither a TOML file nor one of .*paper"
    with pytest.raises(RecipeError, match=words):
        load_recipe(str(path))


def given_config(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The recipe that ``msan train`` would run with these options."""
    seen: list[TrainConfig] = []

    def run(*arguments: object) -> None:
        assert isinstance(arguments[2], TrainConfig)
        seen.append(arguments[2])
        raise MsanError("seen")

    monkeypatch.setattr("msan.training.train.train", run)
    app = typer.Typer()
    app.command()(train_command)
    result = CliRunner().invoke(app, ["data", "-o", "run", "--device", "cpu", *arguments])
    if not isinstance(result.exception, MsanError):
        raise AssertionError(result.output)
    if not seen:
        raise result.exception
    return seen[0]


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--recipe", "paper"], {}),
        (["--no-attention"], {"spec": ModelSpec(attention=False)}),
        (["--loss", "mse"], {"loss": "mse"}),
        (["--network", "msan-s"], {"spec": ModelSpec(stages=2, base_channels=16, resblocks=3)}),
        (
            ["--network", "msan-s", "--no-attention"],
            {"spec": ModelSpec(stages=2, base_channels=16, resblocks=3, attention=False)},
        ),
        (["--init", "msan-s"], {"init": "msan-s"}),
        (["--epochs", "2.5"], {"epochs": 2.5}),
        (["--steps", "7", "--batch", "2", "--crop", "64"], {"steps": 7, "batch": 2, "crop_px": 64}),
        (["--learning-rate", "1e-3", "--learning-rate-end", "0"], {"learning_rate": 1e-3, "learning_rate_end": 0.0}),
        (["--warmup-steps", "0"], {"warmup_steps": 0}),
        (["--clip-norm", "0.5", "--ema-decay", "0.99"], {"clip_norm": 0.5, "ema_decay": 0.99}),
        (["--amp", "fp16", "--no-channels-last"], {"amp": "fp16", "channels_last": False}),
        (["--compile"], {"torch_compile": True}),
        (["--seed", "0"], {"seed": 0}),
        (["--layout", "gopro-gamma", "--pair-share", "0"], {"layout": "gopro-gamma", "pair_share": 0.0}),
        (["--held-back", "5", "--validate-every", "9"], {"held_back": 5, "validate_every": 9}),
    ],
)
def test_options_change_what_they_name_and_nothing_else(
    arguments: list[str], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert given_config(arguments, monkeypatch) == dataclasses.replace(TrainConfig(), **changes)


def test_options_go_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text("batch = 3\nsteps = 50\nidentity_start = true")
    ours = ["--recipe", str(tmp_path / "mine.toml")]
    assert given_config(ours, monkeypatch) == TrainConfig(batch=3, steps=50, identity_start=True)
    changed = given_config([*ours, "--batch", "4", "--epochs", "2"], monkeypatch)
    # Epochs asked for on the command line stand in place of the file's steps.
    assert changed == TrainConfig(batch=4, epochs=2.0, identity_start=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "large"], "no network named 'large'"),
        (["--recipe", "nowhere.toml"], "no recipe nowhere.toml"),
        (["--crop", "100"], "crop_px must be a multiple of 8, not 100"),
        (["--learning-rate", "nan"], "learning_rate must be a positive number, not nan"),
        (["--seed", "-1"], "seed must be"),
        (["--held-back", "1"], "held_back must be 0 or at least 2"),
    ],
)
def test_an_impossible_option_is_refused(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MsanError, match=words):
        given_config(arguments, monkeypatch)


def test_every_option_of_the_recipe_is_documented_as_one_of_its_attributes() -> None:
    options = set(inspect.signature(train_command).parameters)
    of_the_run = {"data", "output", "recipe", "validate", "save_every", "report_every", "cache", "workers"}
    of_the_run |= {"context", "network", "attention", "skip_bad", "device", "tensorboard"}
    documented = set(re.findall(r"^ +(\w+):", inspect.getdoc(TrainConfig) or "", re.MULTILINE))
    assert options - of_the_run <= documented == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", ["learning_rate", "epsilon", "epochs"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_what_must_be_positive_and_finite_is(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{name} must be a positive number, not"):
        recipe_from_dict({name: value})
