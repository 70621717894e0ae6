"""Training losses: the paper's binary cross-entropy (Eq. 9) and mean squared error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["BLUR_PROBABILITY_MAX", "LossName", "bce_loss", "loss_named", "mse_loss"]

LossName = Literal["bce", "mse"]

BLUR_PROBABILITY_MAX = 254 / 255
"""Bound of the blur probability |D - S|/255 in :func:`bce_loss`: one grey level before the pole."""


def bce_loss(deblurred: Tensor, sharp: Tensor) -> Tensor:
    """Binary cross-entropy of Eq. 9: -mean log(1 - |D - S|), for D and S in [0, 1].

    Every sample is labelled "sharp" and |D - S|/255 (in grey levels) is its probability of
    being blurred. Eq. 9 has a pole at a difference of 255 levels, and D is not clamped and may
    lie beyond it. Up to ``BLUR_PROBABILITY_MAX`` the loss is Eq. 9 exactly; above, it goes on
    along the tangent there, -log(1 - p) ≈ log 255 + 255·(p - 254/255), so value and gradient
    stay finite (|gradient| ≤ 255 a sample) and still point towards S.

    Args:
        deblurred: network output, any shape, not clamped.
        sharp: target of the same shape, in [0, 1].

    Returns:
        A scalar, 0 where both are equal.
    """
    probability = (deblurred - sharp).abs()
    bounded = probability.clamp(max=BLUR_PROBABILITY_MAX)
    slope = 1 / (1 - BLUR_PROBABILITY_MAX)
    return (slope * (probability - bounded) - torch.log1p(-bounded)).mean()


def mse_loss(deblurred: Tensor, sharp: Tensor) -> Tensor:
    """Mean squared error, in [0, 1] units (the paper's M1 and M3)."""
    return (deblurred - sharp).square().mean()


def loss_named(name: LossName) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss function of that name."""
    return {"bce": bce_loss, "mse": mse_loss}[name]
