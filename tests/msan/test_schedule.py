"""The learning rate of each step, against PyTorch's own schedulers and a formula."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from msan.training.recipe import TrainConfig
from msan.training.schedule import Schedule, plan_schedule

PAPER = TrainConfig()


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    steps = draw(st.integers(1, 400))
    warmup = draw(st.integers(0, steps - 1))
    end, peak = sorted((draw(st.floats(1e-9, 1.0)), draw(st.floats(1e-9, 1.0))))
    return Schedule(steps=steps, warmup_steps=warmup, peak=peak, end=end)


@given(schedules())
def test_the_ends_are_exact_and_the_rate_rises_then_falls(schedule: Schedule) -> None:
    rates = [schedule.at(step) for step in range(schedule.steps)]
    warmup = schedule.warmup_steps
    assert rates[-1] == schedule.end
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if schedule.steps > 1:
        assert max(rates) == schedule.peak
    if warmup:
        assert rates[0] == pytest.approx(schedule.peak / warmup)
        assert rates[warmup - 1] == schedule.peak


@pytest.mark.parametrize(("steps", "warmup"), [(60, 7), (41, 2), (30, 0)])
def test_the_rate_is_that_of_pytorchs_schedulers(steps: int, warmup: int) -> None:
    schedule = Schedule(steps=steps, warmup_steps=warmup, peak=1e-4, end=1e-6)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=schedule.peak)
    cosine = CosineAnnealingLR(optimiser, T_max=steps - 1 - warmup, eta_min=schedule.end)
    scheduler: SequentialLR | CosineAnnealingLR = cosine
    if warmup:
        linear = LinearLR(optimiser, start_factor=1 / warmup, total_iters=warmup - 1)
        scheduler = SequentialLR(optimiser, [linear, cosine], milestones=[warmup])
    for step in range(steps):
        assert schedule.at(step) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9, abs=1e-13), step
        optimiser.step()
        with warnings.catch_warnings():
            # SequentialLR itself calls the next scheduler in a way that PyTorch deprecates.
            warnings.simplefilter("ignore")
            scheduler.step()


def test_the_middle_of_the_cosine_is_the_mean_of_its_ends() -> None:
    schedule = Schedule(steps=101, warmup_steps=0, peak=1e-3, end=1e-5)
    assert schedule.at(50) == pytest.approx((1e-3 + 1e-5) / 2)
    assert schedule.at(25) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_papers_run_has_3000_epochs_of_2103_pairs_and_five_of_warm_up(processes: int) -> None:
    schedule = plan_schedule(PAPER, pictures=2103, processes=processes)
    samples_a_step = 8 * processes
    assert (schedule.steps - 1) * samples_a_step < 3000 * 2103 <= schedule.steps * samples_a_step
    assert (schedule.warmup_steps - 1) * samples_a_step < 5 * 2103 <= schedule.warmup_steps * samples_a_step
    assert (schedule.peak, schedule.end) == (1e-4, 1e-6)
    assert schedule.at(schedule.steps - 1) == 1e-6


def test_a_shorter_run_warms_up_for_the_same_share() -> None:
    schedule = plan_schedule(dataclasses.replace(PAPER, steps=6000), pictures=2103, processes=1)
    assert (schedule.steps, schedule.warmup_steps) == (6000, 10)


def test_steps_and_warm_up_steps_stand_in_place_of_epochs() -> None:
    config = dataclasses.replace(PAPER, steps=500, warmup_steps=40)
    for pictures, processes in ((1, 1), (2103, 4)):
        schedule = plan_schedule(config, pictures=pictures, processes=processes)
        assert (schedule.steps, schedule.warmup_steps) == (500, 40)


@given(st.integers(1, 300), st.integers(0, 400))
def test_a_warm_up_as_long_as_the_run_leaves_it_its_last_step(steps: int, warmup: int) -> None:
    config = dataclasses.replace(PAPER, steps=steps, warmup_steps=warmup)
    schedule = plan_schedule(config, pictures=10, processes=1)
    assert schedule.at(steps - 1) == config.learning_rate_end
    assert all(0 < schedule.at(step) <= config.learning_rate for step in range(steps))
