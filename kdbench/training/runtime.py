"""How long a run takes: by phase, with what runs that are trained together do only once kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of one phase.

    Args:
        name: Of the phase.
        own: What each run takes for itself.
        shared: Batches and teacher passes that the runs of a cohort share.
    """

    name: str
    own: float
    shared: float = 0.0

    @property
    def alone(self) -> float:
        """Seconds in a run that shares nothing."""
        return self.own + self.shared


@dataclass(frozen=True)
class RunTime:
    """Seconds of one run.

    Args:
        phases: In their order.
        around: Before the first phase and after the last one.
        measured: Whether steps of this very run were timed; else it was calculated from other ones.
    """

    phases: tuple[PhaseTime, ...]
    around: float = 0.0
    measured: bool = True

    @property
    def shared(self) -> float:
        """Seconds that the runs of a cohort share."""
        return sum(phase.shared for phase in self.phases)

    @property
    def own(self) -> float:
        """Seconds that the run takes for itself."""
        return self.around + sum(phase.own for phase in self.phases)

    @property
    def alone(self) -> float:
        """Seconds of the run in a cohort of one."""
        return self.own + self.shared


def together(runs: Sequence[RunTime]) -> float:
    """Return the seconds of runs that are trained together: what they share is done once, for the one that needs most.

    Args:
        runs: One or more.
    """
    return max(run.shared for run in runs) + sum(run.own for run in runs)


def calculated(seconds: float, phases: Sequence[tuple[str, int]], shared: float = 0.0) -> RunTime:
    """Return the time of a run that was not measured, spread evenly over its epochs.

    Args:
        seconds: Of the whole run.
        phases: Name and epochs of each phase.
        shared: Share of it, in [0, 1], that the runs of a cohort share.
    """
    epochs = sum(count for _, count in phases)
    parts = [(name, seconds * count / epochs) for name, count in phases if count]
    return RunTime(tuple(PhaseTime(name, (1 - shared) * s, shared * s) for name, s in parts), measured=False)


def spoken(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 1:
        return "<1 s"
    for unit, size, most in (("s", 1, 90), ("min", 60, 90)):
        if round(seconds / size) < most:
            return f"{seconds / size:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
