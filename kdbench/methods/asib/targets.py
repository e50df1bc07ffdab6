"""What the student is taught: a teacher, a mean of them, the synergy, or the nearer of two for each sample (3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kdbench.losses import combine_teachers, wide
from kdbench.method import LossProtocol
from kdbench.methods.asib.kl import sample_kl, sound_kl
from kdbench.methods.asib.options import ASIBOptions

Kind = Literal["teacher", "avg", "weighted_conf", "synergy", "auto"]
OF_SYNERGY = ("synergy", "auto")  # those that the synergy is part of


@dataclass(frozen=True)
class Target:
    """The KD target of a batch; all of it but ``kd_vec`` is constant.

    Args:
        kind: Where it really comes from.
        kd_vec: Temperature KL of each sample (N,), with the student's gradient; 0 where it is not finite.
        logits: The target's logits (N, C).
        synergy_wins: With ``auto`` and an open gate: which samples learn from the synergy (N,), bool.
        dropped: Which entries of ``kd_vec`` were not finite (N,), bool.
    """

    kind: Kind
    kd_vec: Tensor
    logits: Tensor
    dropped: Tensor
    synergy_wins: Tensor | None = None


def teachers_target(
    teachers: tuple[Tensor, ...], how: Literal["teacher", "avg", "weighted_conf"], options: ASIBOptions, p: LossProtocol
) -> Tensor:
    """Return the logits (N, C) that teachers alone make.

    Args:
        teachers: Logits (N, C) of each.
        how: ``teacher`` picks one, the index clamped to those there are; ``avg`` is their weighted mean;
            ``weighted_conf`` weighs them for each sample by their confidence.
        options: ``tau_gate``, the temperature of the confidences.
        p: Teacher index, teacher weights, temperature of the epoch.

    Raises:
        ValueError: If there are more or fewer weights than teachers.
    """
    if p.teacher_weights is not None and len(p.teacher_weights) != len(teachers):
        raise ValueError(
            f"teacher_weights - {len(p.teacher_weights)} values for {len(teachers)} teachers - allowed is one weight "
            "for each teacher - give as many weights as the pair has teachers, or none"
        )
    tau = p.tau if options.tau_gate is None else options.tau_gate
    logits = tuple(wide(one.detach()) for one in teachers)
    return combine_teachers(logits, how, index=max(0, p.teacher_index), weights=p.teacher_weights, tau=tau)


def make_target(
    student: Tensor,
    teachers: tuple[Tensor, ...],
    synergy: Tensor | None,
    options: ASIBOptions,
    p: LossProtocol,
    epoch: int,
) -> Target:
    """Return the KD target of a batch: the table of 3.4.

    Args:
        student: Logits (N, C).
        teachers: Logits (N, C) of each teacher.
        synergy: Scaled synergy logits (N, C), or None where the gate is shut.
        options: ``kd_target``, ``tau_syn``, ``tau_gate``, ``kd_ens_alpha``, ``teacher_adapt_kd_warmup``.
        p: Temperature of the epoch, teacher index and weights.
        epoch: 0-based epoch of the B-Step.

    Raises:
        ValueError: If the target is unknown or the teacher weights do not fit.

    Source:
        Specification of the ASIB benchmark, 3.4.
    """
    how = options.kd_target
    if how in OF_SYNERGY and synergy is not None:
        average, tau_syn = teachers_target(teachers, "avg", options, p), options.tau_syn or p.tau
        taught = wide(synergy.detach())
        if how == "auto":
            return _nearer(student, taught, average, tau_syn, p.tau)
        share = options.kd_ens_alpha if epoch < options.teacher_adapt_kd_warmup else 0.0
        if share > 0:
            taught = (1 - share) * taught + share * average
        return _towards("synergy", student, taught, tau_syn)
    if how == "teacher" or how == "avg" or how == "weighted_conf":  # noqa: PLR1714 (mypy narrows this form only)
        return _towards(how, student, teachers_target(teachers, how, options, p), p.tau)
    if how == "synergy":
        return _towards("avg", student, teachers_target(teachers, "avg", options, p), p.tau)
    if how == "auto":
        return _towards("weighted_conf", student, teachers_target(teachers, "weighted_conf", options, p), p.tau)
    raise ValueError(
        f"kd_target - '{how}' is unknown - allowed are teacher, avg, weighted_conf, synergy, auto - write one of them"
    )


def _towards(kind: Kind, student: Tensor, logits: Tensor, tau: float) -> Target:
    kd_vec, dropped = sound_kl(logits, student, tau)
    return Target(kind, kd_vec, logits, dropped)


def _nearer(student: Tensor, synergy: Tensor, average: Tensor, tau_syn: float, tau: float) -> Target:
    """Return the target that for each sample is the nearer one; both are compared at the same temperature."""
    learner = student.detach()
    wins = sample_kl(synergy, learner, tau) <= sample_kl(average, learner, tau)
    of_synergy, no_synergy = sound_kl(synergy, student, tau_syn)
    of_average, no_average = sound_kl(average, student, tau)
    logits = synergy.where(wins.unsqueeze(1), average)
    return Target("auto", of_synergy.where(wins, of_average), logits, no_synergy.where(wins, no_average), wins)
