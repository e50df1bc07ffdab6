"""The B-Step's loss: which terms there are, what weighs them, and when bridge and head run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdbench.method import Mix, total
from kdbench.methods.asib.a_step import AInputs, a_step_terms
from kdbench.methods.asib.b_step import BInputs, BStep, b_step_terms
from kdbench.methods.asib.bridge import ask
from kdbench.methods.asib.features import feature_distance
from kdbench.methods.asib.kl import sample_ce, sample_kl
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.schedules import Counters
from kdbench.methods.asib.weights import certainty_in_b, disagreement

DISAGREE = {"use_disagree_weight": True, "disagree_lambda_high": 1.6, "disagree_lambda_low": 0.7}


def step(
    world: Any,
    last: float | None = 0.9,
    counters: Counters = Counters(ep=5, b=25),
    given: dict[str, Any] | None = None,
    **values: Any,
) -> BStep:
    options = world.options(**values)
    return b_step_terms(world.b(**(given or {})), options, world.protocol, counters, last, world.bridge, world.head)


@pytest.mark.parametrize("how", ["teacher", "avg", "weighted_conf", "synergy", "auto"])
def test_kd_needs_a_target_not_a_bridge(world: Any, how: str) -> None:
    """Row 3."""
    options = world.options(kd_target=how, use_ib=False)
    found = b_step_terms(world.b(tokens=None), options, world.protocol, Counters(), None)
    assert set(found.terms) == {"ce", "kd"}
    assert found.terms["kd"].value > 0
    assert found.synergy is None


@pytest.mark.parametrize(
    ("how", "last", "runs"),
    [("synergy", 0.9, 1), ("auto", 0.9, 1), ("synergy", 0.7, 0), ("auto", None, 0), ("avg", 0.9, 0)],
)
def test_bridge_and_head_run_once_and_only_where_they_are_needed(
    world: Any, calls: Any, how: str, last: float | None, runs: int
) -> None:
    """Row 2."""
    bridge, head = calls(world.bridge), calls(world.head)
    found = step(world, last, kd_target=how, feat_kd_alpha=0.1, use_cccp=True, use_cccp_in_b=True)
    assert (len(bridge), len(head)) == (runs, runs)
    assert (found.synergy is not None, "feat" in found.terms, "cccp" in found.terms) == (bool(runs),) * 3
    assert found.metrics["gate_ratio"].item() == (last == 0.9)


def test_an_open_gate_without_a_bridge_is_an_error(world: Any) -> None:
    with pytest.raises(ValueError, match="kd_target - the gate is open"):
        b_step_terms(world.b(), world.options(), world.protocol, Counters(), 0.9)


def test_a_sample_without_noise_is_an_error(world: Any) -> None:
    with pytest.raises(ValueError, match="use_mu_for_kd"):
        step(world, given={"noise": None}, use_mu_for_kd=False)


@pytest.mark.parametrize("mean", [True, False])
def test_use_mu_for_kd_decides_between_mean_and_sample(world: Any, mean: bool) -> None:
    """Row 27."""
    found = step(world, use_mu_for_kd=mean, synergy_logit_scale=0.7)
    noise = None if mean else world.noise
    code = ask(world.bridge, world.feature, world.tokens, "l2", noise=noise)
    torch.testing.assert_close(found.target.logits, (0.7 * world.head(code.z)).detach())
    assert found.synergy is not None
    assert torch.equal(found.synergy.bottleneck.z, found.synergy.bottleneck.mu) is mean


def test_weights_hold_for_kd_always_and_for_labels_where_nothing_is_mixed(world: Any) -> None:
    """Row 5."""
    mix = Mix(world.labels.roll(1), 0.6)
    for mixed in (None, mix):
        found = step(world, given={"mix": mixed}, min_cw=0.5, max_cw=1.5, **DISAGREE)
        assert found.synergy is not None
        cw = certainty_in_b(found.synergy.bottleneck.logvar, 0.5, 1.5)
        where = disagreement(world.teachers, world.labels, "pred")
        w = cw * torch.where(where, 1.6, 0.7).double()
        torch.testing.assert_close(found.weights, w)
        torch.testing.assert_close(found.terms["kd"].value, (w * found.target.kd_vec).mean())
        ce = sample_ce(world.student, world.labels, mix=mixed)
        torch.testing.assert_close(found.terms["ce"].value, (ce if mixed else w * ce).mean())


def test_labels_of_mixed_images_are_mixed(world: Any) -> None:
    """Row 7."""
    other = world.labels.roll(1)
    protocol = replace(world.protocol, label_smoothing=0.1)
    inputs = world.b(mix=Mix(other, 0.6))
    found = b_step_terms(inputs, world.options(kd_target="avg", label_smoothing=0.4), protocol, Counters(), None)
    own, partner = (sample_ce(world.student, labels, 0.1).mean() for labels in (world.labels, other))
    torch.testing.assert_close(found.terms["ce"].value, 0.6 * own + 0.4 * partner)


def test_the_feature_term_has_the_bottleneck_of_this_batch_and_teaches_the_feature(world: Any) -> None:
    """Rows 6 and 28."""
    found = step(world, feat_kd_alpha=0.25, feat_kd_clip=0.5, feat_kd_huber_beta=1.0)
    mu = ask(world.bridge, world.feature, world.tokens, "l2", noise=None).mu.detach()
    expected = (found.certainty * feature_distance(world.feature, mu, 0.5, 1.0)).mean()
    torch.testing.assert_close(found.terms["feat"].value, expected)
    (gradient,) = torch.autograd.grad(total(found.terms), world.feature)
    by_hand = 0.25 * found.certainty[:, None] * (world.feature - mu.clamp(-0.5, 0.5)).detach().clamp(-1, 1) / 6
    torch.testing.assert_close(gradient, by_hand)
    without = step(world, feat_kd_alpha=0.0)
    assert torch.autograd.grad(total(without.terms), world.feature, allow_unused=True) == (None,)


def test_the_feature_term_goes_to_the_mean_even_where_a_sample_teaches(world: Any) -> None:
    mean, sample = (step(world, feat_kd_alpha=0.25, use_mu_for_kd=mu).terms["feat"].value for mu in (True, False))
    torch.testing.assert_close(sample, mean)


def test_a_feature_of_another_width_has_no_feature_term(world: Any) -> None:
    torch.manual_seed(0)
    world.bridge.q_proj = torch.nn.Linear(7, 4).double()
    found = step(world, given={"feature": torch.ones(6, 7, dtype=torch.float64)}, feat_kd_alpha=0.25)
    assert "feat" not in found.terms


def test_feature_distances_are_sums_and_huber_halves_small_errors() -> None:
    """Row 31."""
    feature, mu = torch.tensor([[0.5, 3.0, -4.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert feature_distance(feature, mu).item() == 0.25 + 4 + 16
    assert feature_distance(feature, mu, huber=1.0).item() == 0.125 + 1.5 + 3.5
    assert feature_distance(feature, mu, huber=2.0).item() == 0.0625 + 1.0 + 3.0
    assert feature_distance(feature, mu, clip=0.5).item() == 0.25 + 2.5**2 + 16


def test_bridge_head_and_teachers_get_no_gradient(world: Any) -> None:
    found = step(world, kd_target="auto", feat_kd_alpha=0.1, use_cccp=True, use_cccp_in_b=True, cccp_alpha=0.2)
    total(found.terms).backward()
    assert all(p.grad is None for module in (world.bridge, world.head) for p in module.parameters())
    assert world.student.grad is not None
    assert world.feature.grad is not None


def test_the_limit_on_kd_is_a_factor_of_its_weight(world: Any) -> None:
    found = step(world, kd_max_ratio=0.01, kd_warmup_epochs=4)
    ce, kd = found.terms["ce"].value.item(), found.terms["kd"].value.item()
    scale = 0.01 * ce / kd
    assert float(found.terms["kd"].weight) == pytest.approx(0.35 * scale)
    assert found.metrics["kd_scale_mean"].item() == pytest.approx(scale)
    assert (found.metrics["kd_clamp_ratio"].item(), found.metric_weights["kd_scale_mean"].item()) == (1.0, 1.0)
    free = step(world, counters=Counters(ep=1, b=21), kd_max_ratio=0.01, kd_warmup_epochs=4)
    assert float(free.terms["kd"].weight) == pytest.approx(0.35 * 0.5)
    assert (free.metrics["kd_clamp_ratio"].item(), free.metric_weights["kd_scale_mean"].item()) == (0.0, 0.0)
    assert free.metrics["kd_alpha_eff"].item() == pytest.approx(0.175)


def test_the_clamp_warms_up_in_student_epochs(world: Any) -> None:
    """Row 17."""
    clamp = {"use_loss_clamp": True, "loss_clamp_max": 0.5, "loss_clamp_warmup_epochs": 8}
    for counters, limit in ((Counters(ep=7, b=7, a=99, g=99), False), (Counters(ep=0, b=8, a=0, g=0), True)):
        found = step(world, counters=counters, **clamp)
        value = total(found.terms).item()
        assert value == pytest.approx(0.5 if limit else found.unclamped.item())


def test_cccp_in_the_b_step_is_off_by_default_and_has_its_own_weight(world: Any) -> None:
    """Row 26."""
    assert "cccp" not in step(world, use_cccp=True, cccp_alpha=0.2).terms
    assert "cccp" not in step(world, use_cccp_in_b=True, cccp_alpha=0.2).terms
    found = step(world, use_cccp=True, use_cccp_in_b=True, cccp_alpha=0.2)
    assert found.synergy is not None
    torch.testing.assert_close(found.terms["cccp"].value, sample_kl(found.synergy.logits, world.student, 4.0).mean())
    assert found.terms["cccp"].weight == 0.2


def test_who_taught_is_counted_in_samples(world: Any) -> None:
    auto = step(world, kd_target="auto")
    assert auto.target.synergy_wins is not None
    wins = auto.target.synergy_wins.double().mean().item()
    assert (auto.metrics["auto_syn_win_ratio"].item(), auto.metrics["kd_syn_ratio"].item()) == (wins, wins)
    assert step(world).metrics["kd_syn_ratio"].item() == 1.0
    shut = step(world, last=0.1, kd_target="auto")
    assert "auto_syn_win_ratio" not in shut.metrics
    assert (shut.metrics["kd_syn_ratio"].item(), shut.metrics["gate_ratio"].item()) == (0.0, 0.0)


def test_divergence_is_counted_and_not_hidden(world: Any) -> None:
    """Row 50: a broken teacher drops its sample, a broken student breaks the loss."""
    teachers = tuple(one.clone() for one in world.teachers)
    teachers[0][1, 0] = math.nan
    found = step(world, kd_target="teacher", given={"teachers": teachers})
    assert found.metrics["kd_nonfinite"].item() == pytest.approx(1 / 6)
    (gradient,) = torch.autograd.grad(total(found.terms), world.student)
    assert gradient.isfinite().all()
    student = world.student.detach().clone()
    student[0, 0] = math.nan
    assert not total(step(world, kd_target="avg", given={"student": student}).terms).isfinite()


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_no_step_waits_for_the_device(world: Any, mode: str) -> None:
    """Tensors of the meta device have no values: whatever asks for one fails."""
    on_meta = {
        "student": torch.empty(6, 5, device="meta", requires_grad=True),
        "feature": torch.empty(6, 4, device="meta", requires_grad=True),
        "labels": torch.empty(6, dtype=torch.int64, device="meta"),
    }
    teachers = (torch.empty(6, 5, device="meta"),) * 2
    tokens, noise = torch.empty(6, 2, 3, device="meta"), torch.empty(6, 4, device="meta")
    bridge, head = world.bridge.to("meta").float(), world.head.to("meta").float()
    options = ASIBOptions(
        **{"use_ib": True, "use_mu_for_kd": False, "use_cccp": True, "use_cccp_in_a": True, "use_cccp_in_b": True},
        **{"use_loss_clamp": True, "loss_clamp_mode": mode, "disable_loss_clamp_in_a": False, "kd_max_ratio": 1.0},
        **{"feat_kd_alpha": 0.1, "reg_lambda": 0.1, "ib_mbm_reg_lambda": 0.1, **DISAGREE, "disagree_mode": "any_wrong"},
    )
    for how in ("auto", "synergy", "weighted_conf", "avg"):
        inputs = BInputs(**on_meta, teachers=teachers, tokens=tokens, noise=noise, mix=Mix(on_meta["labels"], 0.4))
        target = options.model_copy(update={"kd_target": how})
        found = b_step_terms(inputs, target, world.protocol, Counters(), 0.9, bridge, head)
        total(found.terms).backward()
        assert all(value.device.type == "meta" for value in found.metrics.values())
    bottleneck = ask(bridge, on_meta["feature"], tokens, "l2", noise=noise)
    batch = AInputs(
        **on_meta,
        bottleneck=bottleneck,
        synergy=head(bottleneck.z),
        trained_bridge=tuple(bridge.parameters()),
        trained_teacher=teachers,
    )
    a_step = a_step_terms(batch, options, world.protocol, Counters(a_epochs=1), 0.9)
    total(a_step.terms).backward()
    assert all(value.device.type == "meta" for value in a_step.metrics.values())
