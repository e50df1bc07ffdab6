"""Planned runs and what became of them: a diverged run is a result, a missing one lowers what may be claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kdbench.stats.describing import Summary, mean_std
from kdbench.stats.values import finite

RunStatus = Literal["ok", "diverged", "infra_failed", "missing"]


@dataclass(frozen=True)
class IntentToTreat:
    """The planned runs of one method on one pair.

    Args:
        scores: Accuracy of each ok seed and chance of each diverged one, in percent, by ascending seed.
        scored: Mean and std of them; None without one.
        ok_only: The same of the ok runs alone, to be shown in brackets.
        ok: Number of ok runs.
        diverged: Number of diverged runs.
        planned: Number of planned runs.
        absent: Seeds without a score, ascending.
    """

    scores: dict[int, float]
    scored: Summary | None
    ok_only: Summary | None
    ok: int
    diverged: int
    planned: int
    absent: tuple[int, ...]

    @property
    def unstable(self) -> bool:
        """Whether a run diverged: such a row can neither win nor be bold."""
        return self.diverged > 0

    @property
    def label(self) -> str:
        """``unstable k/n`` of the finished runs, or empty."""
        return f"unstable {self.diverged}/{self.ok + self.diverged}" if self.unstable else ""


def intent_to_treat(outcomes: Mapping[int, tuple[RunStatus, float | None]], classes: int) -> IntentToTreat:
    """Score every planned run of a method.

    Args:
        outcomes: Status of each planned seed, and its accuracy in percent, which is looked at only if it is ok.
        classes: Number of classes, >= 2; chance is 100 / classes.

    Raises:
        ValueError: If an ok run has no accuracy in [0, 100].

    Source:
        Section 5: never dropped, never imputed, never replaced by a fresh seed.
    """
    if classes < 2:
        raise ValueError(f"classes - {classes} - two are the least - give the number of the dataset's classes")
    ok: dict[int, float] = {}
    scores: dict[int, float] = {}
    for seed, (status, accuracy) in sorted(outcomes.items()):
        if status == "ok":
            value = float(finite(accuracy if accuracy is not None else float("nan"), f"seed {seed}"))
            if not 0 <= value <= 100:
                raise ValueError(f"seed {seed} - accuracy {value} - must lie in [0, 100] percent - correct the record")
            ok[seed] = scores[seed] = value
        elif status == "diverged":
            scores[seed] = 100 / classes
    return IntentToTreat(
        scores=scores,
        scored=mean_std(scores.values()) if scores else None,
        ok_only=mean_std(ok.values()) if ok else None,
        ok=len(ok),
        diverged=len(scores) - len(ok),
        planned=len(outcomes),
        absent=tuple(sorted(outcomes.keys() - scores.keys())),
    )
