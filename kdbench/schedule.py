"""What changes from epoch to epoch, as pure functions of the epoch: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.config.schema import Anchor, Loss, Schedule, Stopping
from kdbench.method import AnyMethod, LossProtocol, Phase

ONECYCLE_START, ONECYCLE_END = 25.0, 1e4  # base / START at first, base / START / END at last
PLATEAU_THRESHOLD, PLATEAU_LEAST_CHANGE = 1e-4, 1e-8  # relative improvement that counts; smaller steps are not made


@dataclass(frozen=True)
class Within:
    """What beside the epoch some rates depend on.

    Args:
        step: 0-based step in the epoch.
        steps: Steps per epoch.
        accuracies: Validation accuracies of the epochs before, in percent, oldest first.
    """

    step: int = 0
    steps: int = 1
    accuracies: Sequence[float] = ()


def learning_rate(
    schedule: Schedule, base: float, epoch: int, epochs: int | None = None, within: Within = Within()
) -> float:
    """Return the learning rate of a 0-based epoch.

    ``onecycle`` is the one rate that changes with the step, and has its warm-up in itself. The others warm up linearly
    and count whole epochs: restarts and the plateau from the end of the warm-up, milestones from the first epoch.

    Args:
        schedule: The anchor's schedule.
        base: Initial rate; of ``onecycle`` the largest.
        epoch: 0-based epoch.
        epochs: Length of the phase; None = the schedule's.
        within: Where in the epoch, and what was measured before it.
    """
    length = schedule.epochs if epochs is None else epochs
    warmup = min(schedule.warmup_epochs, length - 1)
    if schedule.name == "onecycle":
        return _onecycle(base, warmup * within.steps, length * within.steps, epoch * within.steps + within.step)
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    since = epoch - warmup
    if schedule.name == "cosine":
        return _cosine(base, schedule.min_lr, since / max(1, length - warmup))
    if schedule.name == "step":
        return base * float(schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones))
    if schedule.name == "cosine_warm_restarts":
        return _restarting(schedule, base, since)
    if schedule.name == "reduce_on_plateau":
        return _on_plateau(schedule, base, within.accuracies[warmup:epoch])
    return base


def _cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def _onecycle(base: float, rising: int, steps: int, step: int) -> float:
    """Return the one-cycle rate (Smith & Topin 2019, arXiv:1708.07120): half a cosine up, another one down."""
    first = base / ONECYCLE_START
    top, end = rising - 1, steps - 1  # the steps that have the largest and the smallest rate
    if step <= top:
        return _cosine(first, base, step / max(1, top))
    return _cosine(base, first / ONECYCLE_END, (step - top) / (end - top))


def _restarting(schedule: Schedule, base: float, since: int) -> float:
    """Return the rate of SGDR (Loshchilov & Hutter 2017, arXiv:1608.03983), lower at each restart by a factor."""
    length, restarts = schedule.period, 0
    while since >= length:
        since, length, restarts = since - length, length * schedule.multiplier, restarts + 1
    first = max(schedule.min_lr, base * schedule.restart_factor**restarts)
    return _cosine(first, schedule.min_lr, since / length)


def _on_plateau(schedule: Schedule, base: float, accuracies: Sequence[float]) -> float:
    """Return the rate after these accuracies, read from the first one on: so it needs no state of its own."""
    rate, best, bad = base, -math.inf, 0
    for accuracy in accuracies:
        bad += 1
        if accuracy > best * (1 + PLATEAU_THRESHOLD):
            best, bad = accuracy, 0
        if bad > schedule.plateau_patience:
            lower, bad = max(schedule.min_lr, rate * schedule.plateau_factor), 0
            rate = lower if rate - lower > PLATEAU_LEAST_CHANGE else rate
    return rate


def phase_rate(
    schedule: Schedule, phase: Phase, base: float, epoch: int, epochs: int, within: Within = Within()
) -> float:
    """Return the learning rate of a phase's 0-based epoch: its own course, or the anchor's over the phase's epochs.

    Args:
        schedule: The anchor's schedule.
        phase: The phase.
        base: The anchor's initial rate for the student.
        epoch: 0-based epoch.
        epochs: Length of the phase.
        within: Where in the epoch, and what was measured before it.
    """
    first = base if phase.learning_rate is None else phase.learning_rate
    if phase.rate_factor is not None:
        return first * phase.rate_factor(epoch / epochs)
    return learning_rate(schedule, first, epoch, epochs, within)


def best_epoch(accuracies: Sequence[float]) -> int:
    """Return the 0-based epoch of the highest validation accuracy, the first of equals."""
    return max(range(len(accuracies)), key=lambda epoch: (accuracies[epoch], -epoch))


def has_stopped(stopping: Stopping, accuracies: Sequence[float]) -> bool:
    """Return whether the last ``patience`` epochs brought no improvement by more than ``min_delta``."""
    best, bad = -math.inf, 0
    for accuracy in accuracies:
        bad += 1
        if accuracy > best + stopping.min_delta:
            best, bad = accuracy, 0
    return 0 < stopping.patience <= bad


def temperature(loss: Loss, epoch: int, epochs: int, main: tuple[int, int] | None = None) -> float:
    """Return the KD temperature of a 0-based epoch.

    ``tau_schedule`` starts anew in each phase; ``tau_start`` and ``tau_end`` span all of the student's epochs.

    Args:
        loss: The anchor's loss section.
        epoch: 0-based epoch of the phase.
        epochs: Length of the phase.
        main: Epoch and number of all the student's epochs where the main phase comes in parts.
    """
    if loss.tau_schedule is not None:
        first, last = loss.tau_schedule
        return first if epochs <= 1 else first + (last - first) * epoch / (epochs - 1)
    if loss.tau_start is not None:
        done, whole = main or (epoch, epochs)
        end = loss.tau_start if loss.tau_end is None else loss.tau_end
        return float(end + (loss.tau_start - end) * (1 - min(done / max(1, whole), 1.0)) ** loss.tau_decay_power)
    return loss.tau


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
    anchor: Anchor,
    method: type[AnyMethod],
    epoch: int,
    epochs: int,
    teachers: Sequence[str] = (),
    main: tuple[int, int] | None = None,
) -> LossProtocol:
    """Return the loss settings of a method in an epoch: the anchor's weights, or the method's published ones.

    Args:
        anchor: The protocol as it holds for the method.
        method: Class of the method.
        epoch: 0-based epoch of the phase.
        epochs: Length of the phase.
        teachers: Backbones of the pair's teachers, for weights that are bound to names.
        main: Epoch and number of all the student's epochs where the main phase comes in parts.

    Raises:
        ValueError: If such weights do not fit the teachers of a method that has some.
    """
    loss, published = anchor.loss, method.published
    own = loss.weights == "published"
    return LossProtocol(
        ce_weight=published.ce if own else loss.ce_alpha,
        kd_weight=published.kd if own else loss.kd_alpha,
        tau=temperature(loss, epoch, epochs, main),
        base_tau=loss.tau,
        label_smoothing=loss.ce_label_smoothing,
        kd_target=loss.kd_target,
        teacher_index=loss.kd_teacher_index,
        teacher_weights=ordered_weights(loss, teachers) if method.uses_teacher else None,
    )
