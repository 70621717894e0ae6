"""Checkpoints: the published layout loads as it is, and nothing else loads or runs."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from msan.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    network_from_checkpoint,
    save_checkpoint,
)
from msan.network import MsanNetwork
from msan.spec import ModelSpec

StateMaker = Callable[..., dict[str, Tensor]]

TINY = ModelSpec(stages=2, base_channels=2, resblocks=1)
EXPECTED = r"expected an MSAN state dict \(keys like 'edcoder1.layer1.weight'\)"


@pytest.fixture
def tiny_state(published_state: StateMaker) -> dict[str, Tensor]:
    return published_state(**TINY.to_dict())


def torch_file(folder: Path, content: object, *, legacy: bool = False) -> Path:
    path = folder / "MSAN.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


def encoded(state: dict[str, Tensor], layout: str) -> bytes:
    if layout == "safetensors":
        return safetensors.torch.save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=layout == "zip")
    return buffer.getvalue()


def assert_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor.float()), name


def test_a_file_of_the_authors_layout_loads_as_it_is(
    tmp_path: Path, published_state: StateMaker, reference_outputs: Callable[..., list[Tensor]]
) -> None:
    state = published_state()
    checkpoint = load_checkpoint(torch_file(tmp_path, state))
    assert checkpoint.spec == ModelSpec()
    assert_same(checkpoint.state, state)
    blurred = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    network = network_from_checkpoint(checkpoint)
    assert not network.training
    with torch.inference_mode():
        difference = network(blurred) - (reference_outputs(state, blurred)[-1] + blurred)
    assert float(difference.abs().max()) <= 1e-5


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_each_format_gives_the_same_weights(layout: str, tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    checkpoint = load_checkpoint(file_of(tmp_path, encoded(tiny_state, layout)))
    assert checkpoint.spec == TINY
    assert_same(checkpoint.state, tiny_state)
    assert checkpoint.metadata == {}
    assert len(checkpoint.sha256) == 64


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "params"])
def test_a_wrapping_entry_is_taken_off(wrapper: str, tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    path = torch_file(tmp_path, {wrapper: tiny_state, "epoch": 3000, "optimizer": {"lr": 1e-6}})
    assert_same(load_checkpoint(path).state, tiny_state)


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in tiny_state.items()}
    assert_same(load_checkpoint(torch_file(tmp_path, prefixed)).state, tiny_state)
    assert_same(load_checkpoint(torch_file(tmp_path, {"state_dict": prefixed})).state, tiny_state)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(stages=1, base_channels=1, resblocks=1),
        ModelSpec(stages=2, base_channels=16, resblocks=3),
        ModelSpec(stages=3, base_channels=5, resblocks=11, attention=False),
        ModelSpec(stages=11, base_channels=1, resblocks=2),
    ],
    ids=lambda spec: spec.name,
)
def test_the_spec_is_read_off_the_shapes(spec: ModelSpec, tmp_path: Path, published_state: StateMaker) -> None:
    assert load_checkpoint(torch_file(tmp_path, published_state(**spec.to_dict()))).spec == spec


def test_gamma_may_be_saved_without_a_dimension(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    scalars = {name: t.reshape(()) if name.endswith("gamma") else t for name, t in tiny_state.items()}
    checkpoint = load_checkpoint(torch_file(tmp_path, scalars))
    assert_same(checkpoint.state, tiny_state)
    network_from_checkpoint(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["zip", "safetensors"])
def test_weights_of_other_precision_become_float32(
    dtype: torch.dtype, layout: str, tmp_path: Path, tiny_state: dict[str, Tensor]
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tiny_state.items()}
    assert_same(load_checkpoint(file_of(tmp_path, encoded(stored, layout))).state, stored)


def test_a_saved_network_comes_back_with_what_it_says_of_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MsanNetwork(TINY).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    path = tmp_path / "model.safetensors"
    save_checkpoint(network, path, {"msan.recipe": json.dumps({"steps": 1})})
    checkpoint = load_checkpoint(path)
    assert checkpoint.spec == TINY
    assert checkpoint.metadata == {"msan.recipe": '{"steps": 1}'}
    assert_same(checkpoint.state, network.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_path_goes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, here = tmp_path / "weights", tmp_path / "here"
    weights.mkdir()
    here.mkdir()
    (weights / "msan-s.safetensors").touch()
    monkeypatch.setattr("msan.checkpoint.WEIGHTS", weights)
    monkeypatch.chdir(here)
    assert find_checkpoint("msan-s") == weights / "msan-s.safetensors"
    assert find_checkpoint("msan-s.safetensors") == weights / "msan-s.safetensors"
    assert find_checkpoint("no-such") == Path("no-such")
    Path("msan-s").touch()
    assert find_checkpoint("msan-s") == Path("msan-s")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint file at .*nowhere\.pth"):
        load_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint file"):
        load_checkpoint(tmp_path)


def odd_tensor(kind: str, tensor: Tensor) -> Tensor:
    """The same numbers, stored as weights never are."""
    if kind == "sparse":
        return tensor.to_sparse()
    return tensor.to(torch.complex64 if kind == "complex" else torch.int32)


@pytest.mark.parametrize("kind", ["sparse", "complex", "integer"])
def test_weights_that_are_no_plain_floats_are_refused(kind: str, tiny_state: dict[str, Tensor], tmp_path: Path) -> None:
    name = "edcoder1.layer3.weight"
    tiny_state[name] = odd_tensor(kind, tiny_state[name])
    torch.save(tiny_state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"{name}.*expected plain floating-point weights"):
        load_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"Hello, this is no checkpoint at all.\n" * 20, b"PK\x03\x04", b"\x80\x02.", b"\x00" * 64],
    ids=["empty", "newline", "text", "zip", "pickle", "zeros"],
)
def test_other_files_are_refused_with_what_was_expected(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"file .*{EXPECTED}"):
        load_checkpoint(file_of(tmp_path, data))


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(layout: str, share: float, tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    data = encoded(tiny_state, layout)
    with pytest.raises(CheckpointError, match=EXPECTED):
        load_checkpoint(file_of(tmp_path, data[: int(len(data) * share)]))


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_anywhere_gives_no_other_exception(
    layout: str, tmp_path: Path, tiny_state: dict[str, Tensor], damage: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(tiny_state, layout))
    for position, value in damage:
        data[position % min(len(data), 4096)] = value
    # Damage may go unseen, in a weight's last bits.
    with suppress(CheckpointError):
        load_checkpoint(file_of(tmp_path, bytes(data)))


class Bomb:
    """A pickle of this makes the file ``marker`` when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle"])
def test_code_in_a_file_is_not_run(layout: str, tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    marker = tmp_path / "ran"
    content = {**tiny_state, "edcoder1.layer1.weight": Bomb(marker)}
    if layout == "plain pickle":
        path = file_of(tmp_path, pickle.dumps(content))
    else:
        path = torch_file(tmp_path, content, legacy=layout == "legacy")
    with pytest.raises(CheckpointError, match=EXPECTED) as raised:
        load_checkpoint(path)
    assert not marker.exists()
    # PyTorch's own message advises just that.
    assert "Re-running" not in str(raised.value)


def test_the_bomb_of_that_test_goes_off(tmp_path: Path) -> None:
    torch.load(torch_file(tmp_path, Bomb(tmp_path / "ran")), weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    words = r"\(torch\.nn\.modules\.conv\.Conv2d\), .* save module\.state_dict\(\) instead"
    with pytest.raises(CheckpointError, match=f"{words}; {EXPECTED}"):
        load_checkpoint(torch_file(tmp_path, nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize(("data", "words"), [(b"", "is empty"), (b"hi", "is no PyTorch checkpoint")])
def test_a_file_that_is_no_checkpoint_is_told_as_that(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"file {words}: {EXPECTED}"):
        load_checkpoint(file_of(tmp_path, data))


@pytest.mark.parametrize("layout", ["zip", "safetensors"])
def test_weights_of_another_network_are_refused_with_what_was_found(layout: str, tmp_path: Path) -> None:
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)).state_dict()
    with pytest.raises(CheckpointError, match=rf"{EXPECTED}.*found 4 tensors \['0.bias', '0.weight'"):
        load_checkpoint(file_of(tmp_path, encoded(state, layout)))


@pytest.mark.parametrize(("content", "found"), [([torch.zeros(1)], "list"), (torch.zeros(2), "Tensor"), (7, "int")])
def test_what_is_no_dict_is_refused_with_its_type(content: object, found: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"holds a {found}: {EXPECTED}"):
        load_checkpoint(torch_file(tmp_path, content))


def test_an_empty_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{EXPECTED}.*found no tensors"):
        load_checkpoint(torch_file(tmp_path, {}))


def test_an_entry_that_is_no_tensor_is_named(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=f"'epoch' is a int: {EXPECTED}"):
        load_checkpoint(torch_file(tmp_path, tiny_state | {"epoch": 12}))


def test_a_missing_tensor_is_named(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    del tiny_state["edcoder2.sa.degconv.bias"]
    with pytest.raises(CheckpointError, match=r"1 tensors missing \['edcoder2.sa.degconv.bias'\], 0 not expected"):
        load_checkpoint(torch_file(tmp_path, tiny_state))


def test_a_missing_stage_is_seen(tmp_path: Path, published_state: StateMaker) -> None:
    state = published_state(stages=3, base_channels=2, resblocks=1)
    without = {name: tensor for name, tensor in state.items() if not name.startswith("edcoder2.")}
    with pytest.raises(CheckpointError, match=r"tensors missing \['edcoder2\..*not expected \['edcoder3\."):
        load_checkpoint(torch_file(tmp_path, without))


def test_an_extra_tensor_is_named(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    extra = tiny_state | {"edcoder1.layer12.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"0 tensors missing \[\], 1 not expected \['edcoder1.layer12.weight'\]"):
        load_checkpoint(torch_file(tmp_path, extra))


def test_a_wrong_shape_is_named_with_the_right_one(tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    wrong = tiny_state | {"edcoder2.layer3.weight": torch.zeros(4, 2, 5, 5)}
    with pytest.raises(CheckpointError, match=r"edcoder2.layer3.weight has shape \(4, 2, 5, 5\), .* \(4, 2, 3, 3\)"):
        load_checkpoint(torch_file(tmp_path, wrong))


@pytest.mark.parametrize("first", [torch.zeros(4), torch.zeros(0, 3, 3, 3)], ids=["1-D", "no channels"])
def test_a_first_convolution_of_no_width_is_refused(
    first: Tensor, tmp_path: Path, tiny_state: dict[str, Tensor]
) -> None:
    with pytest.raises(CheckpointError, match="holds no MSAN network"):
        load_checkpoint(torch_file(tmp_path, tiny_state | {"edcoder1.layer1.weight": first}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path, tiny_state: dict[str, Tensor]) -> None:
    tiny_state["edcoder1.layer7.bias"][1] = value
    with pytest.raises(CheckpointError, match=r"'edcoder1\.layer7\.bias' holds NaN or infinity"):
        load_checkpoint(torch_file(tmp_path, tiny_state))
