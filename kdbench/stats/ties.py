"""Tie groups: methods whose means are not shown to differ, named by letters instead of ranked."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

SLACK = 1e-12  # what float noise may add to a difference of means


def tie_groups(means: Mapping[str, float], width: float) -> dict[str, str]:
    """Return the letters of each method: two methods are not shown to differ if and only if they share one.

    A group is a longest run of means no further apart than the width; the group of the best is "a". Ranks would claim
    an order that a table of noisy means does not have.

    Args:
        means: Mean of each method.
        width: Tukey's honest difference, in the unit of the means.

    Source:
        Section 3 (blocked Tukey); letters as usual after Tukey's test (Piepho 2004).
    """
    order = sorted(means, key=lambda method: (-means[method], method))
    letters = dict.fromkeys(means, "")
    last, group = -1, 0
    for first, method in enumerate(order):
        end = max(i for i in range(first, len(order)) if means[method] - means[order[i]] <= width + SLACK)
        if end > last:  # else the run lies within the one before
            for other in order[first : end + 1]:
                letters[other] += _letter(group)
            last, group = end, group + 1
    return letters


def _letter(index: int) -> str:
    """Return a, b, ..., z, (27), (28), ..."""
    return ascii_lowercase[index] if index < len(ascii_lowercase) else f"({index + 1})"
