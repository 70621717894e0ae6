"""The network computes what the paper says: against an independent implementation on published keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from msan.network import MsanNetwork, parameter_count, start_as_identity
from msan.spec import MSAN, MSAN_S, ModelSpec, SpecError, spec_named

Reference = Callable[[Mapping[str, Tensor], Tensor], list[Tensor]]
StateMaker = Callable[..., dict[str, Tensor]]

TOLERANCE = 1e-5
TINY = ModelSpec(stages=2, base_channels=4, resblocks=1)
SPECS = (
    TINY,
    ModelSpec(stages=1, base_channels=4, resblocks=1, attention=False),
    ModelSpec(stages=3, base_channels=8, resblocks=2),
    ModelSpec(stages=4, base_channels=2, resblocks=1, attention=False),
)


def network_with(state: Mapping[str, Tensor], spec: ModelSpec) -> MsanNetwork:
    network = MsanNetwork(spec)
    network.load_state_dict(dict(state))
    return network.eval()


def picture(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max())


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 24)])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_stage_equals_the_independent_implementation(
    spec: ModelSpec, size: tuple[int, int], reference_outputs: Reference, published_state: StateMaker
) -> None:
    state = published_state(**spec.to_dict())
    blurred = picture(2, 3, *size)
    with torch.inference_mode():
        ours = network_with(state, spec).stage_outputs(blurred)
    theirs = reference_outputs(state, blurred.double())
    assert len(ours) == len(theirs) == spec.stages
    for our, their in zip(ours, theirs, strict=True):
        assert largest_difference(our, their) <= TOLERANCE


def test_the_papers_network_equals_the_independent_implementation(
    reference_outputs: Reference, published_state: StateMaker
) -> None:
    state = published_state()
    blurred = picture(1, 3, 64, 64)
    with torch.inference_mode():
        ours = network_with(state, MSAN)(blurred)
    theirs = reference_outputs(state, blurred.double())[-1] + blurred.double()
    assert float(theirs.sub(blurred).abs().max()) > 0.1
    assert largest_difference(ours, theirs) <= TOLERANCE


def test_the_independent_implementation_in_float32_agrees_too(
    reference_outputs: Reference, published_state: StateMaker
) -> None:
    state = published_state(**TINY.to_dict())
    blurred = picture(1, 3, 24, 16)
    with torch.inference_mode():
        ours = network_with(state, TINY)(blurred)
    assert largest_difference(ours, reference_outputs(state, blurred)[-1] + blurred) <= TOLERANCE


def test_the_deblurred_picture_is_the_blurred_one_plus_the_last_stage(published_state: StateMaker) -> None:
    network = network_with(published_state(**TINY.to_dict()), TINY)
    blurred = picture(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network(blurred), blurred + network.stage_outputs(blurred)[-1])


@pytest.mark.parametrize("part", ["gamma", "query_conv.weight", "key_conv.weight", "value_conv.weight"])
def test_each_part_of_the_attention_module_changes_the_picture(part: str, published_state: StateMaker) -> None:
    state = published_state(**TINY.to_dict())
    blurred = picture(1, 3, 32, 32)
    with torch.inference_mode():
        before = network_with(state, TINY)(blurred)
        state[f"edcoder1.sa.{part}"] = state[f"edcoder1.sa.{part}"] * 2
        after = network_with(state, TINY)(blurred)
    assert largest_difference(before, after) > 10 * TOLERANCE


def test_gamma_zero_switches_attention_off(published_state: StateMaker) -> None:
    state = published_state(**TINY.to_dict())
    gammas = {name: torch.zeros(1) for name in state if name.endswith(".sa.gamma")}
    without = {name: tensor for name, tensor in state.items() if ".sa." not in name}
    plain = ModelSpec(stages=TINY.stages, base_channels=TINY.base_channels, resblocks=TINY.resblocks, attention=False)
    blurred = picture(1, 3, 16, 24)
    with torch.inference_mode():
        off = network_with(state | gammas, TINY)(blurred)
        assert largest_difference(off, network_with(without, plain)(blurred)) <= TOLERANCE


def test_pictures_of_a_batch_do_not_see_each_other(published_state: StateMaker) -> None:
    network = network_with(published_state(**TINY.to_dict()), TINY)
    blurred = picture(3, 3, 16, 24)
    with torch.inference_mode():
        together = network(blurred)
        alone = torch.cat([network(blurred[i : i + 1]) for i in range(3)])
    assert largest_difference(together, alone) <= TOLERANCE


def test_the_papers_network_has_the_papers_size(published_state: StateMaker) -> None:
    assert parameter_count(MsanNetwork()) == 8_924_720
    assert sum(tensor.numel() for tensor in published_state().values()) == 8_924_720


@pytest.mark.parametrize("spec", [MSAN, MSAN_S, *SPECS], ids=lambda spec: spec.name)
def test_keys_and_shapes_are_the_published_ones(spec: ModelSpec, published_state: StateMaker) -> None:
    with torch.device("meta"):
        ours = MsanNetwork(spec).state_dict()
    published = published_state(**spec.to_dict())
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in published.items()}


def test_attention_is_off_in_a_new_network() -> None:
    state = MsanNetwork(TINY).state_dict()
    gammas = [tensor for name, tensor in state.items() if name.endswith("gamma")]
    assert len(gammas) == TINY.stages
    assert not any(gamma.any() for gamma in gammas)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_start_as_identity_gives_the_blurred_picture_to_the_bit(spec: ModelSpec) -> None:
    torch.manual_seed(0)
    network = MsanNetwork(spec)
    blurred = picture(1, 3, 16, 16)
    with torch.inference_mode():
        assert not torch.equal(network(blurred), blurred)
        start_as_identity(network)
        assert torch.equal(network(blurred), blurred)


def test_gradients_reach_every_weight(published_state: StateMaker) -> None:
    network = network_with(published_state(**TINY.to_dict()), TINY)
    network(picture(1, 3, 32, 32)).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # Softmax does not see what is added to all keys' products with one query: QᵀK hides the key's bias.
    assert [name for name in without if not name.endswith("key_conv.bias")] == []


@pytest.mark.parametrize("field", ["stages", "base_channels", "resblocks"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_impossible_specs_are_refused_with_the_value_seen(field: str, value: object) -> None:
    numbers: dict[str, object] = {"stages": 1, "base_channels": 4, "resblocks": 1, field: value}
    with pytest.raises(SpecError, match=rf"{field}.*{value!r}"):
        ModelSpec(**numbers)  # pyright: ignore[reportArgumentType]


def test_named_specs_are_found_and_others_refused() -> None:
    assert spec_named("msan") == ModelSpec()
    assert spec_named("msan").name == "msan"
    with pytest.raises(SpecError, match=r"'msan-x'.*msan-s"):
        spec_named("msan-x")
