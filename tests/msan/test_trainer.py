"""One optimiser step: against Adam, clipping, averaging and mixed precision written out by hand."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from msan.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from msan.network import MsanNetwork
from msan.spec import ModelSpec
from msan.training.distributed import Team
from msan.training.losses import bce_loss
from msan.training.recipe import RecipeError, TrainConfig
from msan.training.schedule import Schedule, plan_schedule
from msan.training.trainer import NotFiniteError, Trainer

ALONE = Team(rank=0, processes=1, device=torch.device("cpu"))
SPEC = ModelSpec(stages=2, base_channels=4, resblocks=1)
MakeCheckpoint = Callable[[ModelSpec], Checkpoint]


@pytest.fixture(scope="module")
def config(miniature: TrainConfig, make_checkpoint: MakeCheckpoint) -> TrainConfig:
    """Two stages whose attention has a gain."""
    return dataclasses.replace(miniature, spec=SPEC, init=str(make_checkpoint(SPEC).path))


def trainer(config: TrainConfig) -> Trainer:
    return Trainer(config, plan_schedule(config, pictures=4, processes=1), ALONE)


def batch(step: int, *, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    sharp = torch.rand(count, 3, 32, 32, generator=generator)
    return (sharp + sharp.roll(1, 3)) / 2, sharp


def by_hand(config: TrainConfig, schedule: Schedule, steps: int) -> MsanNetwork:
    """The network after steps of Adam (Kingma & Ba, Algorithm 1) in double precision."""
    network = copy.deepcopy(trainer(config).network).double()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in network.named_parameters()}
    beta1, beta2 = config.betas
    for step in range(steps):
        blurred, sharp = batch(step)
        loss = -torch.log(1 - (network(blurred.double()) - sharp.double()).abs()).mean()
        gradients = dict(zip(moments, torch.autograd.grad(loss, list(network.parameters())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                gradient = gradients[name] * scale
                first = beta1 * moments[name][0] + (1 - beta1) * gradient
                second = beta2 * moments[name][1] + (1 - beta2) * gradient**2
                moments[name] = first, second
                unbiased = first / (1 - beta1 ** (step + 1)), second / (1 - beta2 ** (step + 1))
                parameter -= schedule.at(step) * unbiased[0] / (unbiased[1].sqrt() + config.epsilon)
    return network


def furthest(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest difference of two networks' weights."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_steps_are_those_of_adam_on_equation_9(clip_norm: float, config: TrainConfig) -> None:
    # An epsilon that keeps rounding of next to no gradient from deciding the direction.
    config = dataclasses.replace(config, clip_norm=clip_norm, epsilon=1e-4)
    ours = trainer(config)
    for step in range(4):
        ours.take_step(*batch(step))
    theirs = by_hand(config, ours.schedule, 4)
    assert ours.step == 4
    assert furthest(ours.network, theirs) < 1e-5
    assert furthest(ours.network, trainer(config).network) > 1e-4


def test_the_norm_told_is_that_before_clipping(config: TrainConfig) -> None:
    network = copy.deepcopy(trainer(config).network)
    loss = bce_loss(network(batch(0)[0]), batch(0)[1])
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))
    ours = trainer(dataclasses.replace(config, clip_norm=norm / 10))
    result = ours.take_step(*batch(0))
    assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    clipped = [p.grad for p in ours.network.parameters() if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(clipped)) == pytest.approx(norm / 10, rel=1e-3)


def test_the_kept_weights_are_the_moving_average(config: TrainConfig) -> None:
    decay = 0.8
    averaging, plain = trainer(dataclasses.replace(config, ema_decay=decay)), trainer(config)
    average: dict[str, Tensor] = {}
    for step in range(4):
        averaging.take_step(*batch(step))
        plain.take_step(*batch(step))
        for name, parameter in plain.network.named_parameters():
            now = parameter.detach().double()
            average[name] = decay * average[name] + (1 - decay) * now if step else now
    assert furthest(averaging.network, plain.network) == 0
    assert plain.kept is plain.network
    for name, parameter in averaging.kept.named_parameters():
        assert torch.allclose(parameter.double(), average[name], atol=1e-6)
    assert furthest(averaging.kept, averaging.network) > 1e-5


@pytest.mark.parametrize("change", [{"channels_last": False}, {"identity_start": True}, {"loss": "mse"}])
def test_memory_layout_changes_nothing_and_the_rest_does(change: dict[str, object], config: TrainConfig) -> None:
    config = dataclasses.replace(config, init=None if "identity_start" in change else config.init, channels_last=True)
    losses: list[list[float]] = []
    for ours in (trainer(config), trainer(dataclasses.replace(config, **change))):
        losses.append([ours.take_step(*batch(step)).loss for step in range(5)])
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert difference < 1e-4 if "channels_last" in change else difference > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # from the compiler's own modules
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_compiled_network_learns_the_same(amp: str, config: TrainConfig) -> None:
    config = dataclasses.replace(config, amp=amp)
    losses: list[list[float]] = []
    for ours in (trainer(config), trainer(dataclasses.replace(config, torch_compile=True))):
        losses.append([ours.take_step(*batch(step)).loss for step in range(4)])
        assert set(ours.state()["network"]) == set(MsanNetwork(SPEC).state_dict())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4 if amp == "off" else 5e-3)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_near_full_precision_with_weights_in_full(amp: str, config: TrainConfig) -> None:
    # A gradient over 2^16 times the loss would make the FP16 scaler leave a step out.
    mixed, full = trainer(dataclasses.replace(config, amp=amp)), trainer(config)
    losses = [[ours.take_step(*batch(step)).loss for step in range(4)] for ours in (mixed, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    assert all(parameter.dtype == torch.float32 for parameter in mixed.network.parameters())


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_what_is_no_number_stops_before_the_weights_change(
    where: str, amp: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sick(deblurred: Tensor, sharp: Tensor) -> Tensor:
        # The square root of 0 has an infinite slope.
        extra = (deblurred * 0).abs().sum().sqrt() if where == "gradient" else math.inf
        return bce_loss(deblurred, sharp) + extra

    ours = trainer(dataclasses.replace(config, amp=amp, ema_decay=0.5))
    ours.take_step(*batch(0))
    before = copy.deepcopy(ours.state())
    monkeypatch.setattr(ours, "loss", sick)
    with pytest.raises(NotFiniteError, match=rf"the {where} is (nan|inf) at step 2"):
        ours.take_step(*batch(1))
    assert ours.step == 1
    after = ours.state()
    for part in ("network", "average"):
        assert all(torch.equal(before[part][name], value) for name, value in after[part].items())
    for index, moments in before["optimiser"]["state"].items():
        assert all(torch.equal(value, after["optimiser"]["state"][index][name]) for name, value in moments.items())


def test_an_fp16_gradient_that_overflows_lowers_the_scale_until_it_is_hopeless(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trainer(dataclasses.replace(config, amp="fp16", init=None))
    before = copy.deepcopy(ours.network)

    def steep(deblurred: Tensor, sharp: Tensor) -> Tensor:
        return bce_loss(deblurred, sharp) + (deblurred * 0).abs().sum().sqrt()

    monkeypatch.setattr(ours, "loss", steep)
    taken = 0
    with pytest.raises(NotFiniteError, match="the gradient is"):  # noqa: PT012
        for step in range(40):
            ours.take_step(*batch(step, count=1))
            taken += 1
    # From 2^16 down to 1.
    assert taken == 17
    assert furthest(ours.network, before) == 0


def test_weights_that_are_no_numbers_are_not_worth_keeping(config: TrainConfig) -> None:
    ours = trainer(config)
    ours.check_weights()
    with torch.no_grad():
        next(ours.network.parameters())[0, 0, 0, 0] = math.nan
    with pytest.raises(NotFiniteError, match="a weight is no finite number after step 0"):
        ours.check_weights()


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_loaded_state_goes_on_to_the_bit(amp: str, config: TrainConfig) -> None:
    config = dataclasses.replace(config, amp=amp, ema_decay=0.9, clip_norm=0.5)
    whole, first, second = trainer(config), trainer(config), trainer(dataclasses.replace(config, init=None))
    for ours in (whole, first):
        for step in range(2):
            ours.take_step(*batch(step))
        # As if a gradient had overflowed.
        ours.scaler.update(256.0)
    losses = [whole.take_step(*batch(step)).loss for step in range(2, 5)]
    second.load_state(copy.deepcopy(first.state()))
    assert second.step == 2
    assert second.scaler.get_scale() == first.scaler.get_scale() == (256 if amp == "fp16" else 1)
    assert [second.take_step(*batch(step)).loss for step in range(2, 5)] == losses
    assert furthest(second.network, whole.network) == furthest(second.kept, whole.kept) == 0


@pytest.mark.parametrize("kind", ["empty", "network", "optimiser", "no average"])
def test_the_state_of_another_training_is_refused(kind: str, config: TrainConfig) -> None:
    ours = trainer(dataclasses.replace(config, ema_decay=0.5))
    state: dict[str, object] = trainer(dataclasses.replace(config, ema_decay=0.5)).state()
    if kind == "empty":
        state = {"step": 3}
    if kind == "network":
        state["network"] = MsanNetwork(ModelSpec(stages=1, base_channels=4)).state_dict()
    if kind == "optimiser":
        state["optimiser"] = {"state": {}, "param_groups": []}
    if kind == "no average":
        state["average"] = None
    with pytest.raises(CheckpointError, match=r"not of this run .*Remove it to start again"):
        ours.load_state(state)


class TestStart:
    def test_a_seed_gives_one_network(self, miniature: TrainConfig) -> None:
        one, same, other = (trainer(dataclasses.replace(miniature, seed=seed)).network for seed in (3, 3, 4))
        assert furthest(one, same) == 0
        assert furthest(one, other) > 0

    def test_identity_start_gives_the_picture_back(self, miniature: TrainConfig) -> None:
        network = trainer(dataclasses.replace(miniature, identity_start=True)).network
        blurred, _ = batch(0)
        assert torch.equal(network(blurred), blurred)
        assert not torch.equal(trainer(miniature).network(blurred), blurred)

    def test_a_checkpoint_is_started_from(self, config: TrainConfig, make_checkpoint: MakeCheckpoint) -> None:
        state = make_checkpoint(SPEC).state
        assert all(torch.equal(value, state[name]) for name, value in trainer(config).network.state_dict().items())

    def test_a_checkpoint_of_another_network_is_refused(self, config: TrainConfig) -> None:
        other = dataclasses.replace(config, spec=ModelSpec(stages=1, base_channels=4, resblocks=1))
        words = r"network\.safetensors is a msan-2x4c1r network, and the recipe trains msan-1x4c1r: choose another init"
        with pytest.raises(RecipeError, match=words):
            trainer(other)

    def test_weights_that_blow_up_are_noticed_at_once(self, config: TrainConfig, tmp_path: Path) -> None:
        network = trainer(config).network
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1e20)
        save_checkpoint(network, tmp_path / "huge.safetensors", {})
        ours = trainer(dataclasses.replace(config, init=str(tmp_path / "huge.safetensors")))
        with pytest.raises(NotFiniteError, match="the loss is nan at step 1"):
            ours.take_step(*batch(0))
