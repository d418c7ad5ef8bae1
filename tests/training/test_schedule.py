"""The learning rate at every step, against PyTorch's schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from labkit.training import warmup_cosine

PEAK, LOW = 3e-3, 2e-4


def schedule(step: int, total: int, warmup: int) -> float:
    return warmup_cosine(
        step, total_steps=total, learning_rate=PEAK, min_learning_rate=LOW, warmup_steps=warmup
    )


@pytest.mark.parametrize(("total", "warmup"), [(50, 7), (50, 2), (13, 11), (200, 100), (3, 2)])
def test_schedule_equals_torch_at_every_step(total: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    fall = CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=LOW)
    scheduler = SequentialLR(optimizer, [rise, fall], milestones=[warmup - 1])
    for step in range(total):
        assert schedule(step, total, warmup) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        scheduler.step()


def test_without_warmup_the_schedule_equals_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = CosineAnnealingLR(optimizer, T_max=22, eta_min=LOW)
    for step in range(23):
        assert schedule(step, 23, 0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("total", "warmup"), [(50, 7), (50, 1), (50, 0), (2, 1), (2, 0), (9, 8)])
def test_the_peak_ends_the_warmup_and_the_minimum_ends_the_schedule(total: int, warmup: int) -> None:
    rates = [schedule(step, total, warmup) for step in range(total)]
    assert max(rates) == rates[max(warmup - 1, 0)] == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(LOW)
    assert rates[0] > 0  # the first step is not wasted
    after = rates[max(warmup - 1, 0) :]
    assert after == sorted(after, reverse=True)


def test_a_schedule_that_is_all_warmup_ends_at_the_peak() -> None:
    assert [schedule(step, 4, 4) for step in range(4)] == pytest.approx([PEAK * n / 4 for n in (1, 2, 3, 4)])


def test_a_schedule_of_one_step_uses_the_peak() -> None:
    assert schedule(0, 1, 0) == schedule(0, 1, 1) == PEAK


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_a_step_outside_the_schedule_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"warmup_cosine: step={step} is outside 0 to 9"):
        schedule(step, 10, 2)
