"""Which methods are not shown worse than the best, and p-values from the pooled error of a whole table."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kdbench.stats.blocked import BlockedAnova, Blocks, blocked_anova, complete_blocks, honest_difference
from kdbench.stats.families import ALPHA, ENOUGH_SEEDS, holm
from kdbench.stats.values import Scores, Vector, rounded

TUKEY = "blocked Tukey"
HOLM_ALL = "Holm over all pairs of methods"


@dataclass(frozen=True)
class BoldSet:
    """The methods not shown worse than the best of one pair. Not bold means shown worse; bold does not mean equal.

    Args:
        best: Method with the highest mean; None if nothing may be said.
        bold: Methods of the set, best first; empty if nothing may be said.
        rule: By which rule; Holm over all pairs of methods where variances differ too much for Tukey.
        n: Seeds that all methods have.
        hsd: Distance of means from which Tukey's rule speaks; None under the other rule.
        guard_ratio: Largest over median residual std.
        left_out: Unstable methods: they can be neither best nor bold.
        dropped_seeds: Seeds that some method lacks.
        reason: Why nothing is bold; empty if something is.
    """

    best: str | None
    bold: tuple[str, ...]
    rule: str
    n: int
    hsd: float | None = None
    guard_ratio: float | None = None
    left_out: tuple[str, ...] = ()
    dropped_seeds: tuple[int, ...] = ()
    reason: str = ""


def bold_set(
    scores: Scores,
    *,
    planned: int | None = None,
    unstable: Collection[str] = (),
    alpha: float = ALPHA,
    least: int = ENOUGH_SEEDS,
) -> BoldSet:
    """Return all methods whose mean is within Tukey's honest difference of the best mean.

    Args:
        scores: Value by seed of each method of one pair.
        planned: Seeds planned for each method; fewer common ones and nothing is bold.
        unstable: Methods with a diverged run.
        alpha: Probability that some truly best method is not bold, in (0, 1).
        least: Common seeds from which something may be bold.

    Source:
        Sections 3 (rule and variance guard) and 5.
    """
    blocks = complete_blocks(scores, unstable)
    left_out = tuple(method for method in scores if method in unstable)
    n, needed = len(blocks.seeds), max(least, planned or 0)

    def silent(reason: str, guard: float | None = None) -> BoldSet:
        return BoldSet(None, (), "", n, None, guard, left_out, blocks.dropped_seeds, reason)

    if len(blocks.methods) < 2:
        return silent("fewer than two methods to compare")
    if n < max(needed, 2):
        return silent(f"{n} of {max(needed, 2)} seeds that all methods have")
    anova = blocked_anova(blocks)
    if anova.reason:
        return silent(anova.reason)
    best = int(np.argmax(anova.means))
    if anova.guarded:
        kept, rule, hsd = _not_worse_by_holm(blocks, best, alpha), HOLM_ALL, None
    else:
        hsd = honest_difference(anova, alpha)
        kept, rule = anova.means >= anova.means[best] - hsd - 1e-12, TUKEY
    order = [index for index in np.argsort(-anova.means, kind="stable") if kept[index]]
    bold = tuple(blocks.methods[index] for index in order)
    return BoldSet(blocks.methods[best], bold, rule, n, hsd, anova.guard_ratio, left_out, blocks.dropped_seeds)


def pooled_p(anova: BlockedAnova, baseline: str) -> dict[str, float | None]:
    """Return Holm-corrected p of every method against a baseline, with the error of the whole table.

    t = (mi - mb) / sqrt(2 MSE / n) with (M - 1)(n - 1) degrees of freedom: more power than the paired test at the price
    of equal variances, so all values are None where the guard says these are not equal, or without spread.

    Source:
        Section 2, secondary p.
    """
    from scipy.special import stdtr  # a hundredth of the time that scipy.stats.t takes

    others = [method for method in anova.methods if method != baseline]
    if anova.reason or anova.guarded:
        return dict.fromkeys(others)
    means = dict(zip(anova.methods, anova.means, strict=True))
    error = math.sqrt(2 * anova.mse / anova.n)
    raw = [2 * float(stdtr(anova.df, -abs(means[method] - means[baseline]) / error)) for method in others]
    return dict(zip(others, holm(raw), strict=True))


def paired_p_of_all(values: Vector) -> Vector:
    """Return the paired t test's p of every pair of rows, (M, M); NaN where the differences have no spread.

    Args:
        values: (M, n), n >= 2.
    """
    from scipy.special import stdtr

    n = values.shape[1]
    differences = rounded(values[:, None] - values[None])
    std = differences.std(axis=2, ddof=1)
    flat = np.ptp(differences, axis=2) == 0
    statistic = np.abs(differences.mean(axis=2)) / np.where(flat, 1, std) * math.sqrt(n)
    p: Vector = np.where(flat, np.nan, 2 * stdtr(n - 1, -statistic))
    return p


def _not_worse_by_holm(blocks: Blocks, best: int, alpha: float) -> Vector:
    p = paired_p_of_all(blocks.values)
    count = len(blocks.methods)
    rows, columns = np.triu_indices(count, 1)
    raw = [None if np.isnan(value) else float(value) for value in p[rows, columns]]
    adjusted = np.ones((count, count))
    # Without spread there is no p, so the method is not shown worse.
    corrected = [1.0 if value is None else value for value in holm(raw)]
    adjusted[rows, columns] = adjusted[columns, rows] = corrected
    kept: Vector = adjusted[best] >= alpha
    return kept
