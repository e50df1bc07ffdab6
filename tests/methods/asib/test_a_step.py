"""The A-Step's loss: window, gate, weights, regularisers, clamp."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdbench.method import total
from kdbench.methods.asib.a_step import AStep, a_step_terms, mean_square
from kdbench.methods.asib.bridge import ib_kl
from kdbench.methods.asib.kl import sample_ce, sample_kl
from kdbench.methods.asib.schedules import Counters
from kdbench.methods.asib.weights import certainty_in_a

AFTER = Counters(ep=3, a=9, g=29, a_epochs=6)
CCCP = {"use_cccp": True, "use_cccp_in_a": True, "cccp_alpha": 0.2}


def step(
    world: Any, counters: Counters = AFTER, last: float | None = 0.9, given: dict[str, Any] | None = None, **values: Any
) -> AStep:
    inputs = world.a(**(given or {}))
    return a_step_terms(inputs, world.options(**{"synergy_only_epochs": 2, **values}), world.protocol, counters, last)


def test_in_the_window_there_is_the_unweighted_cross_entropy_and_the_regularisers(world: Any) -> None:
    trained = {"trained_bridge": tuple(world.bridge.parameters()), "trained_teacher": (torch.ones(3),)}
    values = {"ib_beta": 1.0, "feat_kd_alpha": 0.5, "ib_mbm_reg_lambda": 0.1, "reg_lambda": 0.2, **CCCP}
    found = step(world, replace(AFTER, ep=1), given=trained, **values)
    assert set(found.terms) == {"ce", "reg_bridge", "reg_teacher"}
    assert found.terms["ce"].weight == 1.0
    expected = sample_ce(world.a().synergy, world.labels).mean()
    torch.testing.assert_close(found.terms["ce"].value, expected)
    assert (found.kd_on, found.weights.tolist()) == (False, [1.0] * 6)
    assert set(step(world, replace(AFTER, ep=2), **values).terms) == {"ce", "kd", "cccp", "ib", "feat"}


def test_a_window_as_long_as_the_step_covers_it(world: Any) -> None:
    found = step(world, replace(AFTER, ep=5), synergy_only_epochs=9, **CCCP)
    assert set(found.terms) == {"ce"}


def test_certainty_weights_labels_and_kd_and_gives_no_gradient_of_its_own(world: Any) -> None:
    """Row 11."""
    found, inputs = step(world, min_cw=0.3), world.a()
    cw = certainty_in_a(inputs.bottleneck.logvar, 0.3)
    assert len({round(w, 6) for w in cw.tolist()}) > 2
    torch.testing.assert_close(found.terms["ce"].value, (cw * sample_ce(inputs.synergy, world.labels)).mean())
    torch.testing.assert_close(found.terms["kd"].value, (cw * sample_kl(world.student, inputs.synergy, 4.0)).mean())
    assert not found.weights.requires_grad
    for name, expected in (("cw_mean", cw.mean()), ("cw_below_one", (cw < 1).double().mean())):
        torch.testing.assert_close(found.metrics[name], expected)
    spread = sum((w - cw.mean().item()) ** 2 for w in cw.tolist()) / 6
    assert found.metrics["cw_std"].item() == pytest.approx(math.sqrt(spread))


def test_without_the_bottleneck_there_are_no_certainty_weights_and_no_kl(world: Any) -> None:
    found = step(world, use_ib=False, ib_beta=1.0)
    assert found.weights.tolist() == [1.0] * 6
    assert set(found.terms) == {"ce", "kd"}


@pytest.mark.parametrize(
    ("last", "threshold", "kd_alpha", "on"),
    [(None, None, None, True), (None, 0.5, None, False), (0.4, 0.5, None, False), (0.5, 50.0, None, True)]
    + [(0.9, None, 0.0, False)],
)
def test_the_student_is_heard_once_the_gate_is_open(
    world: Any, last: float | None, threshold: float | None, kd_alpha: float | None, on: bool
) -> None:
    values = {"enable_kd_after_syn_acc": threshold, "teacher_adapt_alpha_kd": kd_alpha, **CCCP}
    found = step(world, last=last, **values)
    assert ("kd" in found.terms, "cccp" in found.terms, found.kd_on) == (on, on, on)
    assert found.metrics["kd_gate"].item() == on


def test_weights_come_from_their_own_keys(world: Any) -> None:
    """Row 26: CCCP's is cccp_alpha, the A-Step's KD has its own key before the anchor's."""
    found = step(world, synergy_ce_alpha=0.8, cccp_ramp_epochs=4, ib_beta=0.4, ib_beta_warmup_epochs=58, **CCCP)
    weights = {name: term.weight for name, term in found.terms.items()}
    assert weights == pytest.approx({"ce": 0.8, "kd": 0.35, "cccp": 0.2 * 0.5, "ib": 0.4 * 29 / 58})
    assert step(world, teacher_adapt_alpha_kd=0.6).terms["kd"].weight == 0.6
    assert step(world, feat_kd_alpha=0.3).terms["feat"].weight == 0.3
    assert step(world, feat_kd_alpha=0.3, feat_kd_alpha_in_a=0.1).terms["feat"].weight == 0.1
    assert "feat" not in step(world, feat_kd_alpha=0.3, feat_kd_alpha_in_a=0.0).terms


@pytest.mark.parametrize("flags", [(False, True), (True, False), (False, False)])
def test_cccp_needs_both_flags(world: Any, flags: tuple[bool, bool]) -> None:
    """Row 26."""
    assert "cccp" not in step(world, use_cccp=flags[0], use_cccp_in_a=flags[1], cccp_alpha=0.2).terms


def test_cccp_is_the_plain_kl_at_the_key_tau(world: Any) -> None:
    inputs = world.a()
    options = world.options(**CCCP)
    found = a_step_terms(inputs, options, world.protocol, AFTER, 0.9, tau=2.5)
    torch.testing.assert_close(found.terms["cccp"].value, sample_kl(world.student, inputs.synergy, 4.0).mean())
    cw = certainty_in_a(inputs.bottleneck.logvar, 0.1)
    torch.testing.assert_close(found.terms["kd"].value, (cw * sample_kl(world.student, inputs.synergy, 2.5)).mean())
    assert found.metrics["tau"].item() == 2.5


def test_the_student_gets_no_gradient(world: Any) -> None:
    feature = world.feature.detach().clone().requires_grad_()  # the bridge has asked with another one
    found = step(world, given={"feature": feature}, feat_kd_alpha=0.5, ib_beta=0.1, **CCCP)
    assert set(found.terms) == {"ce", "kd", "cccp", "ib", "feat"}
    gradients = torch.autograd.grad(total(found.terms), (world.student, feature), allow_unused=True)
    assert gradients == (None, None)


def test_label_smoothing_is_the_a_steps_own(world: Any) -> None:
    """Row 48."""
    smooth = replace(world.protocol, label_smoothing=0.3)
    inputs = world.a()
    found = a_step_terms(inputs, world.options(use_ib=False, label_smoothing=0.1), smooth, AFTER, 0.9)
    torch.testing.assert_close(found.terms["ce"].value, sample_ce(inputs.synergy, world.labels, 0.1).mean())


def test_regularisers_are_means_over_tensors_not_entries() -> None:
    assert mean_square((torch.tensor([2.0]), torch.zeros(9))).item() == 2.0


def test_the_temperatures_regulariser_is_its_square(world: Any) -> None:
    log_temp = torch.tensor(0.5, requires_grad=True)
    found = step(world, given={"log_temp": log_temp}, synergy_temp_reg=0.1)
    assert (found.terms["reg_temp"].value.item(), found.terms["reg_temp"].weight) == (0.25, 0.1)


@pytest.mark.parametrize(("off", "a", "limited"), [(True, 9, False), (False, 9, True), (False, 2, False)])
def test_the_clamp_is_off_unless_asked_for_and_warms_up_in_a_step_epochs(
    world: Any, off: bool, a: int, limited: bool
) -> None:
    """Row 17: neither the student's nor the global epoch counts here."""
    clamp = {"use_loss_clamp": True, "loss_clamp_max": 0.25, "loss_clamp_warmup_epochs": 3}
    found = step(world, replace(AFTER, a=a, b=99), disable_loss_clamp_in_a=off, **clamp)
    value = total(found.terms).item()
    assert found.unclamped.item() > 0.25
    assert value == pytest.approx(0.25 if limited else found.unclamped.item())


def test_the_composition_names_the_terms_before_the_clamp(world: Any) -> None:
    clamp = {"use_loss_clamp": True, "loss_clamp_mode": "hard", "disable_loss_clamp_in_a": False}
    found = step(world, **clamp)
    assert found.composition == {"ce", "kd", "ib"}
    assert set(found.terms) == {"ce", "kd", "ib", "clamp"}


def test_metrics_of_the_bottleneck(world: Any) -> None:
    found, inputs = step(world, ib_beta=0.4), world.a()
    kld = ib_kl(inputs.bottleneck.mu, inputs.bottleneck.logvar)
    assert found.metrics["ib_kld"].item() == pytest.approx(kld.item())
    assert found.metrics["logvar_mean"].item() == pytest.approx(inputs.bottleneck.logvar.mean().item())
    assert found.metrics["ib_beta"].item() == pytest.approx(0.4)
    assert not any(value.requires_grad for value in found.metrics.values())
