"""Many comparisons at once: corrected p-values, and the stars of a table against one baseline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kdbench.stats.paired import PairedDifference, paired_difference
from kdbench.stats.values import Scores

Correction = Literal["holm", "hochberg", "bonferroni", "bh"]
ALPHA = 0.05
ENOUGH_SEEDS = 5  # fewer are a smoke run: shown, never claimed (section 1.2)


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline of its table.

    Args:
        difference: Method minus baseline over common seeds.
        p_holm: p-value after Holm over the family; None where the comparison has none.
        family: Number of comparisons corrected for, those without a p-value included.
        star: Whether p_holm < alpha may be claimed.
        reason: Why nothing may be claimed whatever p is; empty if something may.
    """

    method: str
    baseline: str
    difference: PairedDifference
    p_holm: float | None = None
    family: int = 1
    star: bool = False
    reason: str = ""


def adjust(p_values: Sequence[float | None], correction: Correction = "holm") -> tuple[float | None, ...]:
    """Return p-values adjusted for their family, in input order.

    Holm: max over j <= i of min(1, (m - j + 1) p(j)); Hochberg: min over j >= i of (m - j + 1) p(j); Bonferroni: m p;
    BH: min over j >= i of m p(j) / j; p(1) <= p(2) <= ... and at most 1.

    Args:
        p_values: Each in [0, 1]; None is a planned comparison without a p-value: it stays None and counts in m.
        correction: Holm needs nothing, Hochberg positive dependence; BH controls the false discovery rate only.

    Raises:
        ValueError: If a value is not in [0, 1].

    Source:
        Section 2.
    """
    known = [index for index, p in enumerate(p_values) if p is not None]
    values = np.array([p_values[index] for index in known], dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"p-values - {values.tolist()} - each must lie in [0, 1] - leave out what was not tested (None)"
        )
    m = len(p_values)
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    # A comparison without p counts as p = 1, so it takes the last ranks.
    place = np.arange(len(known))
    if correction == "holm":
        raised = np.maximum.accumulate((m - place) * ascending)
    elif correction == "bonferroni":
        raised = m * ascending
    else:
        factor = m - place if correction == "hochberg" else m / (place + 1)
        raised = np.minimum.accumulate((factor * ascending)[::-1])[::-1]
    adjusted: list[float | None] = [None] * m
    for position, p in zip(order, np.minimum(raised, 1), strict=True):
        adjusted[known[position]] = float(p)
    return tuple(adjusted)


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p-values after Holm's correction; see ``adjust``."""
    return adjust(p_values, "holm")


def compare_with_baseline(
    scores: Scores,
    baseline: str,
    *,
    planned: int | None = None,
    unstable: Collection[str] = (),
) -> tuple[Comparison, ...]:
    """Compare every method of one table with one baseline, not yet corrected: pass all cells to ``with_stars``.

    Args:
        scores: Value by seed of each method, diverged runs scored at chance.
        baseline: Which of them the others are compared with; need not be there.
        planned: Seeds that were planned for each method; fewer common ones are shown but not claimed.
        unstable: Methods with a diverged run: no test means anything for them.

    Source:
        Sections 2 and 5.
    """
    found = []
    for method in scores:
        if method == baseline:
            continue
        difference = paired_difference(scores[method], scores.get(baseline, {}))
        if {method, baseline} & set(unstable):
            difference = replace(difference, interval=None, t=None, p=None, reason="unstable")
        found.append(Comparison(method, baseline, difference, reason=unclaimable(difference, planned)))
    return tuple(found)


def with_stars(comparisons: Sequence[Comparison], alpha: float = ALPHA) -> tuple[Comparison, ...]:
    """Correct all comparisons of what is shown together, and star those that may be claimed.

    Args:
        comparisons: The whole family: cells of one baseline in one pair, or in all pairs if all show stars.
        alpha: Level of the family, in (0, 1).

    Source:
        Sections 2 (family, Holm) and 5, rule 3 (too few common seeds: no star).
    """
    adjusted = holm([comparison.difference.p for comparison in comparisons])
    return tuple(
        replace(
            comparison,
            p_holm=p,
            family=len(comparisons),
            star=p is not None and p < alpha and not comparison.reason,
        )
        for comparison, p in zip(comparisons, adjusted, strict=True)
    )


def unclaimable(difference: PairedDifference, planned: int | None) -> str:
    """Return why nothing may be claimed of a difference whatever its p is; empty if something may.

    Source:
        Sections 1.2 (five seeds) and 5, rule 3 (all that were planned).
    """
    if difference.reason:
        return difference.reason
    needed = max(ENOUGH_SEEDS, planned or 0)
    return f"{difference.n} of {needed} seeds" if difference.n < needed else ""
