"""Losses: Eq. 9 of the paper away from its pole, and finite everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from msan.training.losses import BLUR_PROBABILITY_MAX, bce_loss, loss_named, mse_loss


def eq_9(deblurred: Tensor, sharp: Tensor) -> float:
    """As the paper writes it, on grey levels 0 to 255."""
    difference = np.abs(255 * deblurred.double().numpy() - 255 * sharp.double().numpy())
    return float(-np.mean(np.log(1 - difference / 255)))


def loss_of(difference: float) -> tuple[float, float]:
    """The loss of one sample that differs so much, and its gradient."""
    deblurred = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    loss = bce_loss(deblurred, torch.zeros(1, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss, deblurred)
    return float(loss.detach()), float(gradient)


@pytest.mark.parametrize("largest", [0.001, 0.3, 0.99])
def test_bce_is_equation_9_away_from_the_pole(largest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand((2, 3, 16, 16), generator=generator)
    difference = (2 * torch.rand(sharp.shape, generator=generator) - 1) * largest
    deblurred = sharp + difference
    assert float(bce_loss(deblurred, sharp)) == pytest.approx(eq_9(deblurred, sharp), rel=1e-4)


def test_bce_is_zero_for_equal_pictures_with_a_finite_gradient() -> None:
    sharp = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    deblurred = sharp.clone().requires_grad_()
    loss = bce_loss(deblurred, sharp)
    (gradient,) = torch.autograd.grad(loss, deblurred)
    assert float(loss.detach()) == 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("difference", [-1e6, -3.0, -1.0, 254 / 255, 1.0, 1.0 + 1e-7, 2.0, 1e6])
def test_bce_is_finite_at_and_beyond_the_pole_and_points_back(difference: float) -> None:
    deblurred = torch.full((4,), difference, requires_grad=True)
    loss = bce_loss(deblurred, torch.zeros(4))
    (gradient,) = torch.autograd.grad(loss, deblurred)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient * difference > 0).all()
    # Of the mean of 4 samples.
    assert float(gradient.abs().max()) <= 255 / 4 * (1 + 1e-4)


def test_bce_is_continuous_at_the_bound_in_value_and_gradient() -> None:
    below, slope_below = loss_of(BLUR_PROBABILITY_MAX - 1e-9)
    above, slope_above = loss_of(BLUR_PROBABILITY_MAX + 1e-9)
    assert above == pytest.approx(below, abs=1e-6)
    assert slope_above == pytest.approx(slope_below, rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 3), st.floats(1e-6, 1))
def test_bce_grows_with_the_difference(difference: float, more: float) -> None:
    assert loss_of(difference)[0] < loss_of(difference + more)[0]


def test_bce_does_not_ask_for_the_sign_of_the_difference() -> None:
    assert loss_of(0.4)[0] == loss_of(-0.4)[0]


def test_mse_is_the_mean_square() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand((2, 1, 3, 8, 8), generator=generator)
    expected = np.mean((a.double().numpy() - b.double().numpy()) ** 2)
    assert float(mse_loss(a, b)) == pytest.approx(float(expected), rel=1e-5)


def test_losses_are_found_by_name() -> None:
    assert loss_named("bce") is bce_loss
    assert loss_named("mse") is mse_loss
