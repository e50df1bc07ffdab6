"""What changes from epoch to epoch, as pure functions of the counters (4.1, 4.2).

The temperature of the B-Step and the student's learning rate are the anchor's: ``kdbench.schedule``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdbench.methods.asib.options import ASIBOptions

DEFAULT_TAU = 4.0


@dataclass(frozen=True)
class Counters:
    """Where in the training a batch is; all epochs are 0-based.

    Args:
        ep: Epoch of the current A- or B-Step.
        a: Epochs of all A-Steps before this one.
        b: Student epochs of all B-Steps before this one.
        g: Epochs of both kinds before this one, in the order they are run.
        a_epochs: Epochs of the current A-Step.
    """

    ep: int = 0
    a: int = 0
    b: int = 0
    g: int = 0
    a_epochs: int = 0


def beta(options: ASIBOptions, g: int) -> float:
    """Return the weight of the bottleneck's KL after ``g`` epochs of both kinds.

    Source:
        Specification of the ASIB benchmark, 4.1.
    """
    if options.beta_schedule is not None:
        first, last, epochs = options.beta_schedule
        return first + (last - first) * min(g / max(1, epochs), 1)
    warmup = options.ib_beta_warmup_epochs
    return options.ib_beta * (min(g / warmup, 1) if warmup else 1)


def poly(first: float, last: float, epoch: int, epochs: int, power: float = 1.0) -> float:
    """Return an epoch's temperature on a polynomial course from ``first`` to ``last``, where ``epochs`` ends it."""
    return float(last + (first - last) * (1 - min(epoch / max(1, epochs), 1)) ** power)


def tau_in_a(
    a: int,
    epochs: int,
    *,
    tau: float | None = None,
    tau_schedule: tuple[float, float] | None = None,
    tau_start: float | None = None,
    tau_end: float | None = None,
    tau_decay_power: float = 1.0,
) -> float:
    """Return the temperature of an A-Step epoch: the first of the keys that is set, else 4.

    Unlike in the B-Step, ``tau`` comes first and a schedule spans the A-Steps of all stages.

    Args:
        a: A-Step epochs before this one.
        epochs: A-Step epochs of all stages together.
        tau: The configuration's key, as all that follow; None = not set.
        tau_schedule: First and last temperature.
        tau_start: First temperature.
        tau_end: Last temperature; None = ``tau_start``.
        tau_decay_power: Power of the share that is left.

    Source:
        Specification of the ASIB benchmark, 4.2, tau_A.
    """
    if tau is not None:
        return tau
    if tau_schedule is not None:
        return poly(*tau_schedule, a, epochs, tau_decay_power)
    if tau_start is not None:
        return poly(tau_start, tau_start if tau_end is None else tau_end, a, epochs, tau_decay_power)
    return DEFAULT_TAU


def kd_warmup(options: ASIBOptions, epoch: int) -> float:
    """Return the factor in (0, 1] on the KD weight in a 0-based epoch of a B-Step; it starts anew in each stage."""
    return min(1.0, (epoch + 1) / options.kd_warmup_epochs) if options.kd_warmup_epochs else 1.0


def window(options: ASIBOptions, a_epochs: int) -> int:
    """Return the first epochs of an A-Step of ``a_epochs`` that have the cross-entropy alone."""
    return min(options.synergy_only_epochs, a_epochs)


def cccp_ramp(options: ASIBOptions, epoch: int, a_epochs: int) -> float:
    """Return the factor in [0, 1] on CCCP's weight in a 0-based epoch of an A-Step; it rises after the window."""
    if not options.cccp_ramp_epochs:
        return 1.0
    return min(1.0, (epoch - window(options, a_epochs) + 1) / options.cccp_ramp_epochs)


def a_rate_factor(a: int, epochs: int) -> float:
    """Return the factor in (0, 1] on the A-Step's learning rates: one cosine to 0 over the A-Steps of all stages.

    Args:
        a: A-Step epochs before this one.
        epochs: A-Step epochs of all stages together.

    Source:
        Specification of the ASIB benchmark, 2.1.
    """
    return (1 + math.cos(math.pi * min(a / max(1, epochs), 1))) / 2
