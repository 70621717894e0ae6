"""Attention in windows: against a loop over every position, and against attention over the whole picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from msan.blocks import attend
from msan.checkpoint import Checkpoint, network_from_checkpoint
from msan_runtime.attention import GLOBAL, Attention

FloatArray = npt.NDArray[np.float64]


def windows_of(tokens: int) -> Attention:
    return Attention(window_px=8 * tokens)


def random_tokens(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    return query, key, value


def span(position: int, length: int, window: int) -> range:
    """The keys that a query sees along one side: around its block of half a window, inside the picture."""
    block = window // 2
    start = position // block * block - (window - block) // 2
    start = max(0, min(start, length - window))
    return range(start, min(start + window, length))


def attended_by_a_loop(query: FloatArray, key: FloatArray, value: FloatArray, window: int) -> FloatArray:
    """softmax(QKᵀ)V in float64, one query after the other."""
    batch, height, width, _ = query.shape
    out = np.empty_like(query)
    for n in range(batch):
        for row in range(height):
            for column in range(width):
                rows, columns = span(row, height, window), span(column, width, window)
                seen = np.ix_([n], rows, columns)
                keys, values = key[seen].reshape(-1, key.shape[3]), value[seen].reshape(-1, key.shape[3])
                scores = keys @ query[n, row, column]
                weights = np.exp(scores - scores.max())
                out[n, row, column] = weights @ values / weights.sum()
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 23), st.integers(1, 23), st.integers(1, 5), st.integers(2, 12), st.integers(0, 99)
)
def test_windows_equal_a_loop_over_every_position(
    batch: int, height: int, width: int, channels: int, window: int, seed: int
) -> None:
    tokens = random_tokens(batch, height, width, channels, seed=seed)
    expected = attended_by_a_loop(*(x.double().numpy() for x in tokens), window)  # pyright: ignore[reportCallIssue]
    found = attend(*tokens, windows_of(window)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2), st.integers(1, 16), st.integers(1, 16), st.integers(16, 40))
def test_what_fits_into_one_window_is_attended_to_as_a_whole(batch: int, height: int, width: int, window: int) -> None:
    tokens = random_tokens(batch, height, width, 4)
    np.testing.assert_allclose(attend(*tokens, windows_of(window)), attend(*tokens, GLOBAL), atol=1e-5)


def test_global_attention_is_a_softmax_over_all_positions() -> None:
    tokens = random_tokens(2, 5, 7, 4)
    query, key, value = (x.double().flatten(1, 2) for x in tokens)
    expected = (query @ key.transpose(1, 2)).softmax(2) @ value
    np.testing.assert_allclose(attend(*tokens).flatten(1, 2), expected, atol=1e-5)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(2, 20), st.data())
def test_each_query_sees_a_quarter_of_a_window_each_way_and_never_beyond_one(
    length: int, window: int, data: st.DataObject
) -> None:
    """With equal scores a query's output is not 0 exactly where it sees the one value that is not 0."""
    place = data.draw(st.integers(0, length - 1))
    value = torch.zeros(1, length, 1, 1)
    value[0, place] = 1
    zeros = torch.zeros_like(value)
    seeing = attend(zeros, zeros, value, windows_of(window)).flatten() > 0
    distance = (torch.arange(length) - place).abs()
    assert seeing[distance <= window // 4].all()
    assert not seeing[distance >= window].any()


def flops(side: int, attention: Attention, channels: int = 8) -> int:
    tokens = random_tokens(1, side, side, channels)
    # The counter knows matrix products, not the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        attend(*tokens, attention)
    return counter.get_total_flops()


def test_the_cost_of_windows_grows_with_the_pixels_that_of_global_attention_with_their_square() -> None:
    # Two products of queries × keys × channels, two FLOPs each; 16×16 keys a query against 32×32 and 64×64.
    assert flops(32, windows_of(16)) == 4 * 32**2 * 16**2 * 8
    assert flops(64, windows_of(16)) == 4 * flops(32, windows_of(16))
    assert flops(64, GLOBAL) == 16 * flops(32, GLOBAL) == 4 * 64**4 * 8


def picture(batch: int, height: int, width: int) -> Tensor:
    return torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(height * width))


def test_a_network_with_windows_equals_the_global_one_up_to_a_window(tiny: Checkpoint) -> None:
    whole, windowed = (network_from_checkpoint(tiny, form) for form in (GLOBAL, Attention(window_px=64)))
    with torch.inference_mode():
        for size in [(64, 64), (8, 8), (24, 56)]:
            blurred = picture(2, *size)
            assert float((windowed(blurred) - whole(blurred)).abs().max()) <= 1e-5
        for size in [(72, 64), (64, 72), (136, 40)]:
            blurred = picture(2, *size)
            assert float((windowed(blurred) - whole(blurred)).abs().max()) > 1e-4


def test_windows_need_the_same_weights(tiny: Checkpoint) -> None:
    whole, windowed = (network_from_checkpoint(tiny, form) for form in (GLOBAL, Attention(window_px=64)))
    assert {name: x.shape for name, x in whole.state_dict().items()} == {
        name: x.shape for name, x in windowed.state_dict().items()
    }
