"""Each schedule against the scheduler of PyTorch that does the same, with its state: ours has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from kdbench.config.schema import Schedule
from kdbench.schedule import Within, learning_rate
from kdbench.training.lane import Lane

BASE = 0.3


def theirs(make: Callable[[torch.optim.Optimizer], Any], arguments: Sequence[tuple[float, ...]]) -> list[float]:
    """Return the rates a scheduler gives, stepped between them with each tuple of arguments but the last."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler = make(optimizer)
    rates = []
    for given in arguments[:-1]:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*given)
    return [*rates, optimizer.param_groups[0]["lr"]]


def after_warmup(schedule: Schedule, accuracies: Sequence[float] = ()) -> list[float]:
    """Return the rates behind the warm-up, after a look at the warm-up itself."""
    warmup = schedule.warmup_epochs
    rates = [
        learning_rate(schedule, BASE, epoch, within=Within(accuracies=accuracies[:epoch]))
        for epoch in range(schedule.epochs)
    ]
    assert rates[:warmup] == pytest.approx([BASE * (epoch + 1) / warmup for epoch in range(warmup)])
    return rates[warmup:]


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(10, 3, 7), (4, 1, 5), (3, 0, 4), (6, 5, 1)])
def test_onecycle(epochs: int, warmup: int, steps: int) -> None:
    schedule = Schedule(name="onecycle", epochs=epochs, warmup_epochs=warmup)
    found = [
        learning_rate(schedule, BASE, epoch, within=Within(step, steps))
        for epoch in range(epochs)
        for step in range(steps)
    ]
    expected = theirs(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=BASE,
            total_steps=epochs * steps,
            pct_start=warmup / epochs,
            div_factor=25,
            final_div_factor=1e4,
            cycle_momentum=False,
        ),
        [()] * (epochs * steps),
    )
    assert found == pytest.approx(expected, rel=1e-9)


def test_onecycle_of_one_step_of_warm_up_starts_low() -> None:
    """PyTorch divides by zero here."""
    schedule = Schedule(name="onecycle", epochs=3, warmup_epochs=1)
    assert [learning_rate(schedule, BASE, epoch) for epoch in range(3)] == pytest.approx(
        [BASE / 25, (BASE + BASE / 25e4) / 2, BASE / 25e4]
    )


@pytest.mark.parametrize(("period", "multiplier", "warmup", "least"), [(3, 1, 2, 0.0), (2, 2, 0, 0.01), (4, 3, 1, 0.1)])
def test_warm_restarts(period: int, multiplier: int, warmup: int, least: float) -> None:
    schedule = Schedule(
        name="cosine_warm_restarts",
        epochs=20,
        warmup_epochs=warmup,
        min_lr=least,
        period=period,
        multiplier=multiplier,
    )
    expected = theirs(
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=period, T_mult=multiplier, eta_min=least
        ),
        [()] * (20 - warmup),
    )
    assert after_warmup(schedule) == pytest.approx(expected, rel=1e-9)


def test_the_factor_of_restarts_by_hand() -> None:
    schedule = Schedule(name="cosine_warm_restarts", epochs=7, period=2, restart_factor=0.8, min_lr=0.04)
    # Each period: its first rate, then half-way down to the least; 0.8 * 0.8 = 0.64, and 0.512 at the third restart.
    expected = [1.0, 0.52, 0.8, 0.42, 0.64, 0.34, 0.512]
    assert [learning_rate(schedule, 1.0, epoch) for epoch in range(7)] == pytest.approx(expected)
    floor = Schedule(name="cosine_warm_restarts", epochs=3, period=1, restart_factor=0.1, min_lr=0.05)
    assert [learning_rate(floor, 1.0, epoch) for epoch in range(3)] == pytest.approx([1.0, 0.1, 0.05])


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(("patience", "factor", "least"), [(5, 0.5, 0.0), (1, 0.3, 0.02), (0, 0.5, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_reduce_on_plateau(warmup: int, patience: int, factor: float, least: float, seed: int) -> None:
    epochs = 60
    noise = torch.rand(epochs, generator=torch.Generator().manual_seed(seed)) * 3
    accuracies = [round(float(value), 2) for value in 70 + noise]
    schedule = Schedule(
        name="reduce_on_plateau",
        epochs=epochs,
        warmup_epochs=warmup,
        min_lr=least,
        plateau_factor=factor,
        plateau_patience=patience,
    )
    expected = theirs(
        lambda optimizer: lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=factor, patience=patience, min_lr=least
        ),
        [(accuracy,) for accuracy in accuracies[warmup:]],
    )
    assert len(set(expected)) > 2, "the case says nothing"
    assert after_warmup(schedule, accuracies) == pytest.approx(expected, rel=1e-12)


def test_a_gain_of_less_than_a_ten_thousandth_is_a_plateau() -> None:
    schedule = Schedule(name="reduce_on_plateau", epochs=9, plateau_patience=0)
    rates = [learning_rate(schedule, 1.0, n, within=Within(accuracies=[50.0, 50.004, 50.006])) for n in range(4)]
    assert rates == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("warmup", [0, 2])
def test_step_is_multistep(warmup: int) -> None:
    schedule = Schedule(name="step", epochs=12, warmup_epochs=warmup, milestones=(4, 9), gamma=0.3)
    expected = theirs(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [4, 9], gamma=0.3), [()] * 12)
    assert after_warmup(schedule) == pytest.approx(expected[warmup:], rel=1e-12)


def test_restarts_need_a_period() -> None:
    with pytest.raises(ValueError, match="cosine_warm_restarts needs a period of at least 1 epoch; set period"):
        Schedule(name="cosine_warm_restarts", epochs=5)


def test_a_run_follows_onecycle_step_by_step(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    original = Lane._update

    def update(lane: Lane, sound: torch.Tensor) -> None:
        used.extend(group["lr"] for group in lane.optimizer.param_groups)
        original(lane, sound)

    monkeypatch.setattr(Lane, "_update", update)
    anchor = lab.anchor(schedule__name="onecycle", schedule__warmup_epochs=1, optimizer__lr=0.5)
    lane = lab.train([lab.spec("student", anchor=anchor)], "runs")[0].lane
    # 12 steps of 3 epochs: up from 0.02 over the first four, then down to 2e-6 over eight; halves by hand.
    assert [used[step] for step in (0, 3, 7, 11)] == pytest.approx([0.02, 0.5, 0.250001, 2e-6])
    assert [report.learning_rate for report in lane.history] == [used[0], used[4], used[8]]


def test_a_run_on_a_plateau_goes_by_its_own_validation_accuracies(lab: Any) -> None:
    shape = {"schedule__name": "reduce_on_plateau", "schedule__plateau_patience": 0, "schedule__epochs": 8}
    anchor = lab.anchor(**shape, schedule__warmup_epochs=0, schedule__min_lr=0.0, optimizer__lr=0.4)
    history = lab.train([lab.spec("student", anchor=anchor)], "runs")[0].lane.history
    rates = [report.learning_rate for report in history]
    best, expected = -1.0, 0.4
    for report, rate in zip(history, rates, strict=True):
        assert rate == expected
        expected /= 1 if report.validation_accuracy > best * 1.0001 else 2
        best = max(best, report.validation_accuracy)
    assert len(set(rates)) > 1, "never on a plateau: the case says nothing"
