"""TrainConfig: every number that a training result depends on, and its TOML form."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msan.data.readers import LayoutName
from msan.degradation.blur import BlurSpec
from msan.spec import MSAN, ModelSpec, spec_named
from msan.training.losses import LossName
from msan_runtime.errors import MsanError

__all__ = ["AmpName", "RecipeError", "TrainConfig", "load_recipe", "recipe_from_dict", "recipe_names"]

AmpName = Literal["off", "bf16", "fp16"]

RECIPES = Path(__file__).parent / "recipes"

LEARNING_RATE_MAX = 1e30
"""Far beyond any use; above, the optimiser's own arithmetic overflows."""


class RecipeError(MsanError):
    """A training recipe with a value that cannot be."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training recipe. The defaults are the paper's (§4.1), on the full network.

    Attributes:
        spec: the network.
        init: checkpoint to start from (a file, or the name of a shipped one); none: random weights.
        identity_start: zero the last convolution of each sub-network, so that training starts at D = B.
        loss: ``bce`` (Eq. 9) or ``mse`` (M1 and M3).
        epochs: passes over the pictures; each gives one crop an epoch.
        steps: optimiser steps in place of ``epochs``.
        batch: crops a step and process.
        crop_px: side of the square crops, a multiple of 8.
        learning_rate: of Adam after warm-up.
        learning_rate_end: at the last step, by cosine annealing.
        warmup_epochs: of linear warm-up; five, as Goyal et al. have it (the paper cites them without a number).
        warmup_steps: steps in place of ``warmup_epochs``.
        betas: of Adam.
        epsilon: of Adam.
        clip_norm: bound on the norm of the gradient; 0: none.
        ema_decay: of the exponential moving average of the weights; 0: none. With it, the average is what is
            validated and kept as best and last.
        amp: automatic mixed precision of the forward pass.
        channels_last: memory layout of the convolutions; 1.2 to 2 times faster on a CPU.
        torch_compile: run the network through ``torch.compile``.
        seed: of the weights and of every sample.
        long_side_px: sharp pictures are shrunk to this first, which makes photographs sharper to the pixel; 0: never.
        candidates: random crops of a picture looked at for each that is taken, the one with the most gradient energy.
        layout: of the folders of pairs (``gopro-gamma`` and so on); none: as recognised.
        pair_share: share of the samples that are real pairs, where both kinds are given; none: as many as there are.
        flat_share: share of the synthetic samples that are one flat colour, sharp and blurred.
        blur: the synthetic blur (``[blur]``).
        held_back: every n-th picture is kept for validation and not trained on; 0: none.
        validate_every: steps between validations.
        validation_px: side of the centre crops that are validated on.
    """

    spec: ModelSpec = MSAN
    init: str | None = None
    identity_start: bool = False
    loss: LossName = "bce"
    epochs: float = 3000.0
    steps: int | None = None
    batch: int = 8
    crop_px: int = 256
    learning_rate: float = 1e-4
    learning_rate_end: float = 1e-6
    warmup_epochs: float = 5.0
    warmup_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    amp: AmpName = "off"
    channels_last: bool = True
    torch_compile: bool = False
    seed: int = 1414
    long_side_px: int = 1024
    candidates: int = 1
    layout: LayoutName | None = None
    pair_share: float | None = None
    flat_share: float = 0.0
    blur: BlurSpec = field(default_factory=BlurSpec)
    held_back: int = 0
    validate_every: int = 1000
    validation_px: int = 256

    def __post_init__(self) -> None:
        for name in ("crop_px", "validation_px"):
            _require(getattr(self, name) >= 8 and getattr(self, name) % 8 == 0, self, name, "a multiple of 8")
        for name in ("learning_rate", "epochs", "epsilon"):
            _require(0 < getattr(self, name) < math.inf, self, name, "a positive number")
        for name in ("learning_rate", "learning_rate_end"):
            _require(getattr(self, name) <= LEARNING_RATE_MAX, self, name, f"at most {LEARNING_RATE_MAX:g}")
        for name in ("batch", "candidates", "validate_every"):
            _require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("learning_rate_end", "warmup_epochs", "clip_norm", "long_side_px"):
            _require(0 <= getattr(self, name) < math.inf, self, name, "at least 0")
        for name in ("ema_decay", "flat_share", "pair_share"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, self, name, "in [0, 1]")
        _require(self.ema_decay < 1, self, "ema_decay", "under 1")
        _require(0 <= self.seed < 1 << 63, self, "seed", "a whole number from 0 to 2^63 - 1")
        _require(self.held_back == 0 or self.held_back >= 2, self, "held_back", "0 or at least 2")
        _require(all(0 <= beta < 1 for beta in self.betas), self, "betas", "two numbers in [0, 1)")
        _require(self.steps is None or self.steps >= 1, self, "steps", "at least 1")
        _require(self.warmup_steps is None or self.warmup_steps >= 0, self, "warmup_steps", "at least 0")
        _require(self.loss in ("bce", "mse"), self, "loss", "bce or mse")
        _require(self.amp in get_args(AmpName), self, "amp", "off, bf16 or fp16")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON and TOML values, as :func:`recipe_from_dict` reads it."""
        values = dataclasses.asdict(self)
        values["network"] = values.pop("spec")
        return values


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str) -> TrainConfig:
    """The recipe in a TOML file, given by its path or the name of a shipped one (``paper``).

    Keys are the attributes of :class:`TrainConfig`; ``network`` is a name or a table of ModelSpec's numbers.

    Raises:
        RecipeError: if there is no such file, it is not TOML, or holds a key or value that cannot be.
    """
    path = Path(name)
    shipped = RECIPES / f"{name}.toml"
    path = shipped if not path.is_file() and shipped.is_file() else path
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"no recipe {name}: neither a TOML file nor one of {', '.join(recipe_names())}") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    try:
        return recipe_from_dict(values)
    except MsanError as error:
        raise RecipeError(f"{path}: {error}") from error


def recipe_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The recipe with these values, the defaults for all others.

    Raises:
        RecipeError: for an unknown key or a value of another type.
    """
    plain = {key: value for key, value in values.items() if key not in ("network", "blur")}
    settings = _typed(TrainConfig, plain, "")
    if "network" in values:
        settings["spec"] = _spec(values["network"])
    if "blur" in values:
        settings["blur"] = BlurSpec(**_typed(BlurSpec, _table(values["blur"], "blur"), "blur."))
    return TrainConfig(**settings)


def _spec(value: object) -> ModelSpec:
    if isinstance(value, str):
        return spec_named(value)
    return ModelSpec(**_typed(ModelSpec, _table(value, "network"), "network."))


def _table(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{name} must be a table, not {value!r}")
    return value


def _typed(owner: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``values`` checked and converted to the types of ``owner``'s fields."""
    hints = get_type_hints(owner)
    names = {"network" if f.name == "spec" else f.name for f in dataclasses.fields(owner)}
    unknown = sorted(values.keys() - names)
    if unknown:
        raise RecipeError(f"unknown setting {prefix}{unknown[0]}. There are: {', '.join(sorted(names))}")
    return {key: _value(hints[key], value, prefix + key) for key, value in values.items()}


def _value(hint: Any, value: Any, name: str) -> Any:
    # An optional Literal is a typing.Union, any other optional type a UnionType.
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    wanted = options[0]
    if get_args(wanted) and isinstance(value, list | tuple) and not isinstance(get_args(wanted)[0], str):
        return _numbers(get_args(wanted), value, name)
    if wanted is float and type(value) is int:
        return float(value)
    if get_args(wanted) and value in get_args(wanted):
        return value
    if type(value) is not wanted:
        raise RecipeError(f"{name} must be {_wanted(wanted)}, not {value!r}")
    return value


def _numbers(types: tuple[type, ...], values: list[Any] | tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if len(values) != len(types):
        raise RecipeError(f"{name} must be {len(types)} numbers, not {values!r}")
    return tuple(_value(kind, value, name) for kind, value in zip(types, values, strict=True))


def _wanted(kind: Any) -> str:
    if get_args(kind) and isinstance(get_args(kind)[0], str):
        return f"one of {', '.join(get_args(kind))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, f"{len(get_args(kind))} numbers")


def _require(holds: bool, config: TrainConfig, name: str, what: str) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {what}, not {getattr(config, name)}")
