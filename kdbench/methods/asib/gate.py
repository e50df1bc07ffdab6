"""The synergy's measured accuracy, and what it opens (2.2, 2.3, 3.3)."""

from __future__ import annotations

from kdbench.methods.asib.options import ASIBOptions

_DEFAULT_IN_B = 0.8
_PERCENT_ABOVE = 1.5


def share(accuracy: float) -> float:
    """Return an accuracy as a share: above 1.5 it is a percentage."""
    return accuracy / 100 if accuracy > _PERCENT_ABOVE else accuracy


def updated(last: float | None, measured: float | None, options: ASIBOptions) -> float | None:
    """Return the moving average of the synergy's accuracy after an epoch, a share; the first value initialises it.

    Args:
        last: Average so far, a share; None = never measured.
        measured: Validation accuracy of the epoch in percent; None = it was not measured, so nothing changes.
        options: ``synergy_ema_alpha``, the share of the old value.

    Source:
        Specification of the ASIB benchmark, 2.3.
    """
    if measured is None:
        return last
    if last is None:
        return measured / 100
    return options.synergy_ema_alpha * last + (1 - options.synergy_ema_alpha) * measured / 100


def gate_in_a(options: ASIBOptions, last: float | None) -> bool:
    """Return whether the A-Step learns from the student: the threshold is reached, or there is none (the default).

    Args:
        options: ``enable_kd_after_syn_acc``.
        last: Moving average of the synergy's accuracy; None = never measured, which is shut under a threshold.
    """
    threshold = options.enable_kd_after_syn_acc or 0.0
    return threshold <= 0 or (last is not None and share(last) >= share(threshold))


def gate_in_b(options: ASIBOptions, last: float | None, teachers: int) -> bool:
    """Return whether the student may be taught by the synergy.

    Args:
        options: ``use_ib``, ``enable_kd_after_syn_acc`` (0.8 unless set).
        last: Moving average of the synergy's accuracy; None = never measured, which is shut.
        teachers: Number of teachers; one has no synergy.
    """
    given = options.enable_kd_after_syn_acc
    threshold = _DEFAULT_IN_B if given is None else given
    measured = last is not None and last > 0 and share(last) >= share(threshold)
    return options.use_ib and teachers > 1 and measured
