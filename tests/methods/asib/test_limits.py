"""Limits of KD and of the loss, schedules, the accuracy's average, gates, and the loss guard."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdbench.method import total
from kdbench.methods.asib.clamp import kd_scale, limited
from kdbench.methods.asib.gate import gate_in_a, gate_in_b, share, updated
from kdbench.methods.asib.guard import Guard
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.schedules import a_rate_factor, beta, cccp_ramp, kd_warmup, tau_in_a, window
from kdbench.training.mixing import cutmix_box
from kdbench.types import Term

KD, IB, CE = frozenset({"kd", "ib", "ce"}), frozenset({"ib", "ce"}), frozenset({"ce"})


def terms(ce: float, kd: float) -> tuple[dict[str, Term], tuple[torch.Tensor, torch.Tensor]]:
    """Return 0.5 ce + 2 kd and the two leaves."""
    leaves = tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (ce, kd))
    return {"ce": Term(leaves[0], 0.5), "kd": Term(leaves[1], torch.tensor(2.0, dtype=torch.float64))}, leaves


def bounded(ce: float, kd: float, epochs: int = 0, **values: Any) -> tuple[float, float, list[float]]:
    """Return the loss before and behind the limit of 10, and the gradients of what is minimised."""
    given, leaves = terms(ce, kd)
    options = ASIBOptions(**{"use_loss_clamp": True, "loss_clamp_max": 10.0, **values})
    found = limited(given, options, epochs)
    loss = total(found.terms)
    return found.before.item(), loss.item(), [one.item() for one in torch.autograd.grad(loss, leaves)]


def test_the_soft_limit_scales_value_and_gradient_by_one_constant() -> None:
    factor = 10 / (20 + 1e-8)
    before, loss, gradients = bounded(8.0, 8.0)
    assert (before, loss) == pytest.approx((20.0, 20 * factor))
    assert gradients == pytest.approx([0.5 * factor, 2 * factor])
    assert bounded(2.0, 2.0) == (5.0, 5.0, [0.5, 2.0])


def test_the_hard_limit_gives_its_value_and_no_gradient_and_is_not_the_default() -> None:
    """Row 33."""
    assert bounded(8.0, 8.0, loss_clamp_mode="hard") == (20.0, 10.0, [0.0, 0.0])
    assert bounded(2.0, 2.0, loss_clamp_mode="hard") == (5.0, 5.0, [0.5, 2.0])
    assert bounded(-8.0, 0.0, loss_clamp_mode="hard") == (-4.0, 0.0, [0.0, 0.0])
    assert ASIBOptions().loss_clamp_mode == "soft"


def test_without_limit_or_while_it_warms_up_nothing_changes() -> None:
    assert bounded(8.0, 8.0, use_loss_clamp=False)[1] == 20.0
    for epochs, loss in ((0, 20.0), (2, 20.0), (3, 10.0)):
        assert bounded(8.0, 8.0, epochs, loss_clamp_warmup_epochs=3)[1] == pytest.approx(loss)


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_limit_does_not_hide_divergence(mode: str, value: float) -> None:
    """Row 50: the trainer must see that the loss is not finite."""
    assert not math.isfinite(bounded(value, 1.0, loss_clamp_mode=mode)[1])


@pytest.mark.parametrize(
    ("ce", "kd", "epoch", "expected"),
    [
        (2.0, 10.0, 3, 0.25),
        (2.0, 1.0, 3, 1.0),  # never raised
        (2.0, 10.0, 2, 1.0),  # warms up
        (0.0, 10.0, 3, 1.25e-7),
        (0.0, 0.0, 3, 1.0),
    ],
)
def test_kd_stays_within_its_multiple_of_ce(ce: float, kd: float, epoch: int, expected: float) -> None:
    options = ASIBOptions(kd_max_ratio=1.25, kd_warmup_epochs=3)
    leaf = torch.tensor(kd, dtype=torch.float64, requires_grad=True)
    found = kd_scale(torch.tensor(ce, dtype=torch.float64), leaf, options, epoch)
    assert found.item() == pytest.approx(expected)
    assert not found.requires_grad
    assert kd_scale(torch.tensor(ce), leaf, ASIBOptions(), epoch).item() == 1.0


def test_the_weight_of_the_bottleneck_goes_by_the_global_epoch() -> None:
    """Row 17: epoch 3 of both kinds, whatever the A-Steps alone count."""
    warm = ASIBOptions(ib_beta=0.4, ib_beta_warmup_epochs=4)
    assert [beta(warm, g) for g in (0, 1, 4, 9)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    assert beta(ASIBOptions(ib_beta=0.4), 0) == 0.4
    course = ASIBOptions(ib_beta=9.0, beta_schedule=(1.0, 3.0, 4.0))
    assert [beta(course, g) for g in (0, 2, 4, 9)] == [1.0, 2.0, 3.0, 3.0]
    assert beta(ASIBOptions(beta_schedule=(1.0, 3.0, 0.0)), 1) == 3.0


def test_the_a_steps_temperature_is_the_first_key_that_is_set() -> None:
    every: dict[str, Any] = {"tau_schedule": (2.0, 4.0), "tau_start": 6.0, "tau_end": 1.0}
    assert tau_in_a(5, 10, tau=3.0, **every) == 3.0
    assert tau_in_a(5, 10, **every) == 3.0
    assert tau_in_a(5, 10, tau_start=6.0, tau_end=2.0, tau_decay_power=2.0) == 2 + 4 * 0.25
    assert tau_in_a(5, 10, tau_start=6.0) == 6.0
    assert tau_in_a(20, 10, tau_schedule=(2.0, 4.0)) == 4.0
    assert tau_in_a(0, 0) == 4.0


def test_warm_ups_and_ramps_count_epochs_from_one() -> None:
    options = ASIBOptions(kd_warmup_epochs=4, synergy_only_epochs=2, cccp_ramp_epochs=2)
    assert [kd_warmup(options, e) for e in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert kd_warmup(ASIBOptions(), 0) == 1.0
    assert [cccp_ramp(options, e, 6) for e in (2, 3, 4)] == [0.5, 1.0, 1.0]
    assert cccp_ramp(ASIBOptions(), 0, 6) == 1.0


def test_the_window_is_no_longer_than_the_step() -> None:
    """Row 48: its length is the configuration's alone, and its default is none."""
    assert window(ASIBOptions(synergy_only_epochs=8), 6) == 6
    assert window(ASIBOptions(), 6) == 0


def test_the_a_steps_rate_is_one_cosine_over_all_stages() -> None:
    assert [a_rate_factor(a, 4) for a in (0, 1, 2, 4)] == pytest.approx([1.0, (1 + 0.5**0.5) / 2, 0.5, 0.0])


def test_the_average_starts_with_the_first_measurement_and_only_measurements_change_it() -> None:
    """Row 19: three times 87 % is 0.87; a skipped A-Step leaves it alone."""
    options = ASIBOptions(synergy_ema_alpha=0.8)
    last = None
    for measured in (None, 87.0, None, 87.0, 87.0, None):
        last = updated(last, measured, options)
    assert last == pytest.approx(0.87)
    assert updated(0.5, 100.0, options) == pytest.approx(0.6)
    assert updated(None, None, options) is None


@pytest.mark.parametrize(
    ("last", "threshold", "in_a", "in_b"),
    [
        (None, None, True, False),  # A has no threshold unless it is set, B has 0.8
        (0.79, None, True, False),
        (0.80, None, True, True),
        (None, 0.5, False, False),
        (0.49, 50.0, False, False),
        (0.50, 50.0, True, True),
        (50.0, 0.5, True, True),
        (1.0, 1.0, True, True),
        (0.0, 0.0, True, False),
        (0.01, 0.0, True, True),
    ],
)
def test_gates_in_shares_and_percentages(last: float | None, threshold: float | None, in_a: bool, in_b: bool) -> None:
    options = ASIBOptions(use_ib=True, enable_kd_after_syn_acc=threshold)
    assert gate_in_a(options, last) is in_a
    assert gate_in_b(options, last, teachers=2) is in_b


def test_without_the_bottleneck_or_a_second_teacher_the_students_gate_is_shut() -> None:
    assert not gate_in_b(ASIBOptions(use_ib=False), 0.9, teachers=2)
    assert not gate_in_b(ASIBOptions(use_ib=True), 0.9, teachers=1)
    assert gate_in_b(ASIBOptions(use_ib=True), 0.9, teachers=3)
    assert (share(1.5), share(1.6)) == (1.5, 0.016)


def test_the_guard_compares_only_losses_of_the_same_terms() -> None:
    """Row 52: the end of the window and the opening of the gate add terms, so the loss may rise."""
    guard = Guard().after(2.0, CE)
    assert guard.worse(2.1, CE)
    assert not guard.worse(2.0, CE)
    assert not guard.worse(9.0, IB)
    guard = guard.after(9.0, IB)
    assert guard == Guard(9.0, IB)
    assert guard.worse(9.5, IB)
    assert guard.after(9.5, IB) == guard
    assert guard.after(8.0, IB).after(20.0, KD) == Guard(20.0, KD)


def test_a_loss_that_is_not_a_number_is_worse_and_no_reference() -> None:
    assert Guard(2.0, CE).worse(math.nan, CE)
    assert Guard(2.0, CE).after(math.nan, CE) == Guard(2.0, CE)
    assert not Guard().after(math.nan, CE).worse(5.0, CE)


def test_the_patch_of_cutmix_has_the_drawn_area() -> None:
    """Row 32: a share of 3/4 leaves a patch of half the side, not of a quarter."""
    assert cutmix_box(0.75, [0.5, 0.5], (32, 32)) == ((8, 8, 24, 24), 0.75)
