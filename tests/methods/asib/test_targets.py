"""The KD target of each row of the table, hand-computed KLs, and what is not finite."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.losses import cross_entropy, kd_loss
from kdbench.method import LossProtocol, Mix
from kdbench.methods.asib.kl import sample_ce, sample_kl, sound_kl, weighted_mean
from kdbench.methods.asib.options import ASIBOptions
from kdbench.methods.asib.targets import make_target, teachers_target

FIRST, SECOND = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 2.0]])
SYNERGY = torch.tensor([[-2.0, 1.0]])
STUDENT = torch.tensor([[0.5, 0.0]])
PROTOCOL = LossProtocol(ce_weight=1.0, kd_weight=1.0, tau=1.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kl(target: Tensor, learner: Tensor, tau: float) -> float:
    """Return tau^2 KL of two classes in plain Python."""
    p, q = (sigmoid((row[0] - row[1]).item() / tau) for row in (target[0], learner[0]))
    return tau**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


def target(how: str, synergy: Tensor | None = None, epoch: int = 9, p: LossProtocol = PROTOCOL, **values: Any) -> Any:
    return make_target(STUDENT, (FIRST, SECOND), synergy, ASIBOptions(kd_target=how, **values), p, epoch)


def test_kl_and_cross_entropy_of_samples_average_to_the_common_losses(world: Any) -> None:
    teacher = world.teachers[0]
    assert sample_kl(teacher, world.student, 3.0).mean().item() == pytest.approx(
        kd_loss(world.student, teacher, 3.0).item()
    )
    one = cross_entropy(world.student, world.labels, label_smoothing=0.1)
    assert sample_ce(world.student, world.labels, 0.1).mean().item() == pytest.approx(one.item())
    assert sample_kl(FIRST, STUDENT, 2.0).item() == pytest.approx(kl(FIRST, STUDENT, 2.0))


def test_both_labels_of_a_mixed_image_count_by_their_shares() -> None:
    """Row 7."""
    logits, labels = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0])
    found = sample_ce(logits, labels, mix=Mix(torch.tensor([1]), 0.75))
    assert found.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])
    found = sample_ce(logits, torch.tensor([0]), 0.2)
    assert found.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@pytest.mark.parametrize(("index", "expected"), [(0, FIRST), (1, SECOND), (5, SECOND), (-1, FIRST)])
def test_the_teacher_index_is_clamped(index: int, expected: Tensor) -> None:
    for synergy in (None, SYNERGY):
        found = target("teacher", synergy, p=replace(PROTOCOL, teacher_index=index))
        assert (found.kind, found.logits.tolist()) == ("teacher", expected.tolist())


def test_weights_are_normalised_and_one_for_each_teacher() -> None:
    found = target("avg", p=replace(PROTOCOL, teacher_weights=(3.0, 1.0)))
    assert found.logits.tolist() == [[3.0, 0.5]]
    assert target("avg").logits.tolist() == [[2.0, 1.0]]
    for weights in ((1.0,), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"teacher_weights - \d values for 2 teachers"):
            target("avg", p=replace(PROTOCOL, teacher_weights=weights))


def test_one_teacher_with_two_weights_is_refused_too() -> None:
    with pytest.raises(ValueError, match="2 values for 1 teachers"):
        teachers_target((FIRST,), "avg", ASIBOptions(), replace(PROTOCOL, teacher_weights=(0.5, 0.5)))


@pytest.mark.parametrize("gate", [None, 1.0])
def test_confidence_is_each_teachers_largest_probability(gate: float | None) -> None:
    """Row 4; its temperature is tau_gate's, else that of the epoch."""
    tau = 2.0 if gate is None else gate
    sure, unsure = sigmoid(4 / tau), sigmoid(2 / tau)
    found = target("weighted_conf", p=replace(PROTOCOL, tau=2.0), tau_gate=gate)
    share = sure / (sure + unsure)
    torch.testing.assert_close(found.logits, share * FIRST + (1 - share) * SECOND)


@pytest.mark.parametrize(("how", "kind"), [("synergy", "avg"), ("auto", "weighted_conf")])
def test_behind_a_shut_gate_the_fallback_goes_by_the_target(how: str, kind: str) -> None:
    """Row 47."""
    shut, plain = target(how), target(kind)
    assert (shut.kind, shut.synergy_wins) == (kind, None)
    assert torch.equal(shut.logits, plain.logits)
    assert torch.equal(shut.kd_vec, plain.kd_vec)


def test_an_unknown_target_is_an_error() -> None:
    """Row 9."""
    for synergy in (None, SYNERGY):
        with pytest.raises(ValueError, match="kd_target - 'best' is unknown"):
            make_target(STUDENT, (FIRST, SECOND), synergy, ASIBOptions.model_construct(kd_target="best"), PROTOCOL, 0)


@pytest.mark.parametrize("tau_syn", [None, 5.0])
def test_the_synergy_has_its_own_temperature_where_it_is_set(tau_syn: float | None) -> None:
    found = target("synergy", SYNERGY, p=replace(PROTOCOL, tau=2.0), tau_syn=tau_syn)
    assert (found.kind, found.logits.tolist()) == ("synergy", SYNERGY.tolist())
    assert found.kd_vec.item() == pytest.approx(kl(SYNERGY, STUDENT, tau_syn or 2.0))


@pytest.mark.parametrize(("how", "synergy", "epoch", "mixed"), [
    ("synergy", SYNERGY, 3, True),
    ("synergy", SYNERGY, 4, False),  # the warm-up is over
    ("synergy", None, 0, False),
    ("avg", SYNERGY, 0, False),
    ("auto", SYNERGY, 0, False),
])  # fmt: skip
def test_only_an_open_synergy_target_is_mixed_with_the_mean_while_it_warms_up(
    how: str, synergy: Tensor | None, epoch: int, mixed: bool
) -> None:
    """Row 8."""
    found = target(how, synergy, epoch, kd_ens_alpha=0.25, teacher_adapt_kd_warmup=4, tau_syn=5.0)
    plain = target(how, synergy, epoch, tau_syn=5.0)
    if mixed:
        expected = 0.75 * SYNERGY + 0.25 * (FIRST + SECOND) / 2
        torch.testing.assert_close(found.logits, expected)
        assert found.kd_vec.item() == pytest.approx(kl(expected, STUDENT, 5.0), rel=1e-5)
    else:
        assert torch.equal(found.logits, plain.logits)


def test_auto_compares_both_targets_at_one_temperature() -> None:
    """Row 30: the synergy is nearer at 1, but its KL at 6 is far larger than the mean's at 1."""
    student, synergy, average = (torch.tensor([[gap, 0.0]]) for gap in (6.0, 7.0, 5.0))
    assert kl(synergy, student, 1.0) < kl(average, student, 1.0) < kl(synergy, student, 6.0)
    found = make_target(student, (average, average), synergy, ASIBOptions(kd_target="auto", tau_syn=6.0), PROTOCOL, 0)
    assert found.synergy_wins is not None
    assert found.synergy_wins.tolist() == [True]
    assert found.kd_vec.item() == pytest.approx(kl(synergy, student, 6.0), rel=1e-4)
    swapped = make_target(student, (synergy, synergy), average, ASIBOptions(kd_target="auto", tau_syn=6.0), PROTOCOL, 0)
    assert swapped.kd_vec.item() == pytest.approx(kl(synergy, student, 1.0), rel=1e-3)


def test_without_tau_syn_auto_is_the_smaller_kl_and_ties_go_to_the_synergy(world: Any) -> None:
    options, p = ASIBOptions(kd_target="auto"), replace(PROTOCOL, tau=3.0)
    synergy = world.teachers[0].flip(1)
    found = make_target(world.student, world.teachers, synergy, options, p, 0)
    average = (world.teachers[0] + world.teachers[1]) / 2
    both = torch.stack([sample_kl(synergy, world.student, 3.0), sample_kl(average, world.student, 3.0)])
    torch.testing.assert_close(found.kd_vec, both.amin(0))
    assert 0 < int(found.synergy_wins.sum()) < 6
    same = make_target(world.student, world.teachers, average, options, p, 0)
    assert same.synergy_wins.all()


def test_targets_are_constants(world: Any) -> None:
    teachers = tuple(one.clone().requires_grad_() for one in world.teachers)
    synergy = world.teachers[0].clone().requires_grad_()
    for how in ("teacher", "avg", "weighted_conf", "synergy", "auto"):
        found = make_target(world.student, teachers, synergy, ASIBOptions(kd_target=how), PROTOCOL, 0)
        assert not found.logits.requires_grad
        found.kd_vec.sum().backward()
    assert [leaf.grad for leaf in (*teachers, synergy)] == [None] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_dropped_and_counted_and_leave_no_nan_gradient(world: Any, bad: float) -> None:
    """Row 50."""
    broken = world.teachers[0].clone()
    broken[2, 1] = bad
    vec, dropped = sound_kl(broken, world.student, 3.0)
    assert dropped.tolist() == [False, False, True, False, False, False]
    assert vec[2] == 0
    (gradient,) = torch.autograd.grad(vec.sum(), world.student)
    assert gradient.isfinite().all()
    assert gradient[2].abs().max() == 0
    expected = sample_kl(world.teachers[0], world.student, 3.0)
    keep = ~dropped
    torch.testing.assert_close(vec[keep], expected[keep])


def test_where_the_synergy_is_not_finite_auto_takes_the_mean(world: Any) -> None:
    synergy = world.student.detach().clone()  # the nearest there is
    synergy[0, 0] = math.nan
    found = make_target(world.student, world.teachers, synergy, ASIBOptions(kd_target="auto"), PROTOCOL, 0)
    assert found.synergy_wins.tolist() == [False, True, True, True, True, True]
    assert not found.dropped.any()
    assert found.kd_vec[0] > 0
    (gradient,) = torch.autograd.grad(found.kd_vec.sum(), world.student)
    assert gradient.isfinite().all()


def test_weights_of_a_mean_are_constants() -> None:
    values, weights = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([2.0, 0.5], requires_grad=True)
    found = weighted_mean(values, weights)
    assert found.item() == 1.75
    assert torch.autograd.grad(found, (values, weights), allow_unused=True)[1] is None
