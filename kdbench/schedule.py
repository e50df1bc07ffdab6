"""What changes from epoch to epoch, as pure functions of the epoch: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdbench.config.schema import Anchor, Loss, Schedule
from kdbench.method import AnyMethod, LossProtocol, Phase


def learning_rate(schedule: Schedule, base: float, epoch: int, epochs: int | None = None) -> float:
    """Return the learning rate of a 0-based epoch.

    Args:
        schedule: The anchor's schedule.
        base: Initial rate.
        epoch: 0-based epoch.
        epochs: Length of the phase; None = the schedule's.
    """
    length = schedule.epochs if epochs is None else epochs
    warmup = min(schedule.warmup_epochs, length - 1)
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    if schedule.name == "cosine":
        done = (epoch - warmup) / max(1, length - warmup)
        return schedule.min_lr + (base - schedule.min_lr) * (1 + math.cos(math.pi * done)) / 2
    if schedule.name == "step":
        return base * float(schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones))
    return base


def phase_rate(schedule: Schedule, phase: Phase, base: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of a phase's 0-based epoch: its own course, or the anchor's over the phase's epochs.

    Args:
        schedule: The anchor's schedule.
        phase: The phase.
        base: The anchor's initial rate for the student.
        epoch: 0-based epoch.
        epochs: Length of the phase.
    """
    first = base if phase.learning_rate is None else phase.learning_rate
    if phase.rate_factor is not None:
        return first * phase.rate_factor(epoch / epochs)
    return learning_rate(schedule, first, epoch, epochs)


def temperature(loss: Loss, epoch: int, epochs: int) -> float:
    """Return the KD temperature of a 0-based epoch."""
    if loss.tau_schedule is None:
        return loss.tau
    first, last = loss.tau_schedule
    return first if epochs <= 1 else first + (last - first) * epoch / (epochs - 1)


def teacher_misfit(loss: Loss, teachers: Sequence[str], owner: str = "the pair") -> str | None:
    """Return why ``loss.teacher_weights`` does not fit the backbones of the owner's teachers, or None."""
    weights, key = loss.teacher_weights, "loss.teacher_weights"
    if isinstance(weights, dict):
        if twice := [name for name in teachers if teachers.count(name) > 1]:
            return f"{key} goes by name, but {owner} has {twice[0]} more than once; give a list in its teachers' order"
        if set(weights) != set(teachers):
            given = ", ".join(weights) or "no teacher"
            return f"{key} names {given}, but {owner} has {', '.join(teachers)}; name exactly its teachers"
    elif weights is not None and len(weights) != len(teachers):
        return f"{key} has {len(weights)} values, but {owner} has {len(teachers)} teachers"
    return None


def ordered_weights(loss: Loss, teachers: Sequence[str]) -> tuple[float, ...] | None:
    """Return ``loss.teacher_weights`` in the order of a pair's teachers, however they are given.

    Args:
        loss: The anchor's loss section.
        teachers: Backbones of the teachers.

    Raises:
        ValueError: If weights bound to names do not fit.
    """
    if not isinstance(loss.teacher_weights, dict):
        return loss.teacher_weights
    if reason := teacher_misfit(loss, teachers):
        raise ValueError(reason)
    return tuple(loss.teacher_weights[name] for name in teachers)


def loss_protocol(
    anchor: Anchor, method: type[AnyMethod], epoch: int, epochs: int, teachers: Sequence[str] = ()
) -> LossProtocol:
    """Return the loss settings of a method in an epoch: the anchor's weights, or the method's published ones.

    Args:
        anchor: The protocol as it holds for the method.
        method: Class of the method.
        epoch: 0-based epoch of the phase.
        epochs: Length of the phase.
        teachers: Backbones of the pair's teachers, for weights that are bound to names.

    Raises:
        ValueError: If such weights do not fit the teachers of a method that has some.
    """
    loss, published = anchor.loss, method.published
    own = loss.weights == "published"
    return LossProtocol(
        ce_weight=published.ce if own else loss.ce_alpha,
        kd_weight=published.kd if own else loss.kd_alpha,
        tau=temperature(loss, epoch, epochs),
        label_smoothing=loss.ce_label_smoothing,
        kd_target=loss.kd_target,
        teacher_index=loss.kd_teacher_index,
        teacher_weights=ordered_weights(loss, teachers) if method.uses_teacher else None,
    )
