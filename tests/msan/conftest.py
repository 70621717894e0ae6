"""An independent MSAN, written from the paper's facts alone, and random weights in the authors' layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]

RESBLOCK_LAYERS = (2, 4, 6, 8, 10)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference_outputs() -> Callable[[State, Tensor], list[Tensor]]:
    """All stages' outputs, first first, cropped to the picture; in the dtype of the picture."""
    return _outputs


@pytest.fixture(scope="session")
def published_state() -> Callable[..., dict[str, Tensor]]:
    """Random weights: ``published_state(stages=4, base_channels=32, resblocks=4, attention=True, seed=0)``."""
    return _random_state


def _outputs(state: State, blurred: Tensor) -> list[Tensor]:
    state = {name: tensor.to(blurred.dtype) for name, tensor in state.items()}
    height, width = blurred.shape[2:]
    padded = F.pad(blurred - 0.5, (0, -width % 8, 0, -height % 8), mode="replicate")
    outputs: list[Tensor] = []
    code = torch.zeros(())
    stage = 1
    while f"edcoder{stage}.layer1.weight" in state:
        seen = torch.cat((padded, outputs[-1]), 1) if outputs else padded
        output, code = _sub_network(state, f"edcoder{stage}", seen, code)
        outputs.append(output)
        stage += 1
    return [output[:, :, :height, :width] for output in outputs]


def _sub_network(state: State, stage: str, seen: Tensor, previous_code: Tensor) -> tuple[Tensor, Tensor]:
    """The 3-channel output, and the encoder's output before attention (the code)."""
    full = _resblocks(state, f"{stage}.layer2", _conv(state, f"{stage}.layer1", seen, padding=1))
    half = _resblocks(state, f"{stage}.layer4", _conv(state, f"{stage}.layer3", full, stride=2, padding=1))
    quarter = _conv(state, f"{stage}.layer5", half, stride=2, padding=1) + previous_code
    code = _resblocks(state, f"{stage}.layer6", quarter)
    attended = _attention(state, f"{stage}.sa", code) if f"{stage}.sa.gamma" in state else code
    up = _resblocks(state, f"{stage}.layer8", _deconv(state, f"{stage}.layer7", attended) + half)
    up = _resblocks(state, f"{stage}.layer10", _deconv(state, f"{stage}.layer9", up) + full)
    return _conv(state, f"{stage}.layer11", up, padding=1), code


def _resblocks(state: State, layer: str, x: Tensor) -> Tensor:
    index = 0
    while f"{layer}.{index}.conv1.weight" in state:
        inner = _conv(state, f"{layer}.{index}.conv1", x, padding=1).clamp(min=0)
        x = x + _conv(state, f"{layer}.{index}.conv2", inner, padding=1)
        index += 1
    return x


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    """Eqs. 2 and 3, with the N×N matrix written out."""
    batch, channels = x.shape[:2]
    small = _conv(state, f"{name}.gconv", x, stride=2, padding=1, groups=channels)
    query, key, value = (_conv(state, f"{name}.{part}_conv", small).flatten(2) for part in ("query", "key", "value"))
    energy = torch.matmul(query.transpose(1, 2), key)
    weight = torch.exp(energy - energy.amax(2, keepdim=True))
    attention = weight / weight.sum(2, keepdim=True)
    mixed = torch.matmul(value, attention.transpose(1, 2)).reshape(batch, channels, *small.shape[2:])
    return state[f"{name}.gamma"] * _deconv(state, f"{name}.degconv", mixed, groups=channels) + x


def _conv(state: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding, 1, groups)


def _deconv(state: State, name: str, x: Tensor, *, groups: int = 1) -> Tensor:
    return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 2, 1, 0, groups)


def _random_state(
    *, stages: int = 4, base_channels: int = 32, resblocks: int = 4, attention: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for stage in range(1, stages + 1):
        shapes = _sub_network_shapes(6 if stage > 1 else 3, base_channels, resblocks, attention=attention)
        for name, shape in shapes.items():
            fan_in = max(1, shape[1] * shape[2] * shape[3]) if len(shape) == 4 else 100
            # So that activations neither die nor grow along 4 stages, and residuals are of a picture's size.
            scale = 0.5 if ".conv" in name else 0.25 if name.startswith("layer11") else 1.0
            state[f"edcoder{stage}.{name}"] = torch.randn(shape, generator=generator) * scale / fan_in**0.5
        if attention:
            state[f"edcoder{stage}.sa.gamma"] = torch.tensor([0.8])
    return state


def _sub_network_shapes(inputs: int, c: int, resblocks: int, *, attention: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a sub-network's tensors under the published keys; of each weight, then its bias."""
    weights: dict[str, tuple[int, ...]] = {
        "layer1": (c, inputs, 3, 3),
        "layer3": (2 * c, c, 3, 3),
        "layer5": (4 * c, 2 * c, 3, 3),
        "layer7": (4 * c, 2 * c, 4, 4),
        "layer9": (2 * c, c, 4, 4),
        "layer11": (3, c, 3, 3),
    }
    for layer, width in zip(RESBLOCK_LAYERS, (c, 2 * c, 4 * c, 2 * c, c), strict=True):
        for index in range(resblocks):
            for conv in ("conv1", "conv2"):
                weights[f"layer{layer}.{index}.{conv}"] = (width, width, 3, 3)
    if attention:
        weights |= {f"sa.{part}_conv": (4 * c, 4 * c, 1, 1) for part in ("query", "key", "value")}
        weights |= {"sa.gconv": (4 * c, 1, 3, 3), "sa.degconv": (4 * c, 1, 4, 4)}
    shapes: dict[str, tuple[int, ...]] = {"sa.gamma": (1,)} if attention else {}
    for name, shape in weights.items():
        outputs = shape[1] if name in ("layer7", "layer9") else shape[0]
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (outputs,)}
    return shapes
