"""Methods by seeds within one pair: the additive two-way analysis whose residual is the noise of all comparisons."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdbench.stats.values import Scores, Vector, finite

GUARD = 2.5  # largest residual std over the median one beyond which equal variances are not believed
NOTHING = 1e-9  # residuals below are float noise


@dataclass(frozen=True, eq=False)
class Blocks:
    """A complete table of methods and seeds.

    Args:
        methods: Names of the M rows.
        seeds: The n seeds that all methods have, ascending.
        values: (M, n).
        dropped_seeds: Seeds that some method lacks; they count for none.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Vector
    dropped_seeds: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class BlockedAnova:
    """Two-way additive analysis of variance, seed = block.

    Args:
        means: Mean of each method, (M,).
        mse: Residual mean square, in squared units.
        df: Its degrees of freedom, (M - 1)(n - 1).
        f: F statistic of the methods on (M - 1, df); None without spread.
        p: Its p-value, or None.
        residual_std: Per-method standard deviation of the residuals, (M,).
        guard_ratio: Largest over median residual std; above 2.5 equal variances are not believed. None without spread.
        reason: Why there is no test; empty if there is one.
    """

    methods: tuple[str, ...]
    n: int
    means: Vector
    mse: float
    df: int
    f: float | None
    p: float | None
    residual_std: Vector
    guard_ratio: float | None
    reason: str = ""

    @property
    def guarded(self) -> bool:
        """Whether the variances are too unequal for a pooled error."""
        return self.guard_ratio is not None and self.guard_ratio > GUARD


def complete_blocks(scores: Scores, without: Collection[str] = ()) -> Blocks:
    """Return the seeds that all methods have: blocks must be complete, nothing is imputed.

    Args:
        scores: Value by seed of each method.
        without: Methods to leave out of the table, e.g. unstable ones.

    Source:
        Section 5, rule 3.
    """
    kept = {method: runs for method, runs in scores.items() if method not in without}
    every = {seed for runs in kept.values() for seed in runs}
    common = sorted(every.intersection(*kept.values())) if kept else []
    values = finite([[runs[seed] for seed in common] for runs in kept.values()], "accuracies")
    dropped = tuple(sorted(every - set(common)))
    return Blocks(tuple(kept), tuple(common), values.reshape(len(kept), len(common)), dropped)


def blocked_anova(blocks: Blocks) -> BlockedAnova:
    """Split the values into methods, seeds and a residual with (M - 1)(n - 1) degrees of freedom.

    Raises:
        ValueError: For fewer than two methods or two seeds.

    Source:
        Sections 2 (p_pooled, guard) and 3.
    """
    methods, n = blocks.values.shape
    if min(methods, n) < 2:
        raise ValueError(
            f"blocked analysis - {methods} methods and {n} common seeds - two of each are the least - add runs"
        )
    values = blocks.values
    means, grand = values.mean(axis=1), values.mean()
    residual = values - means[:, None] - values.mean(axis=0) + grand
    df = (methods - 1) * (n - 1)
    std = np.sqrt(np.square(residual).sum(axis=1) / (n - 1))
    if np.abs(residual).max() < NOTHING:
        return BlockedAnova(blocks.methods, n, means, 0.0, df, None, None, std, None, "zero variance")
    from scipy.special import fdtrc  # a hundredth of the time that scipy.stats.f takes

    mse = float(np.square(residual).sum() / df)
    ratio = float(n * np.square(means - grand).sum() / (methods - 1) / mse)
    median = float(np.median(std))
    guard = float(std.max()) / median if median > NOTHING else math.inf
    p = float(fdtrc(methods - 1, df, ratio))
    return BlockedAnova(blocks.methods, n, means, mse, df, ratio, p, std, guard)


@lru_cache(maxsize=4096)
def studentized_range(methods: int, df: float, alpha: float = 0.05) -> float:
    """Return the 1 - alpha quantile of the studentized range; kept, since one value takes a quarter of a second.

    Args:
        methods: Number of groups, >= 2.
        df: Degrees of freedom of the error; infinity for ranks.
        alpha: Level, in (0, 1).
    """
    from scipy.stats import studentized_range as distribution

    return float(distribution.ppf(1 - alpha, methods, df))


def honest_difference(anova: BlockedAnova, alpha: float = 0.05) -> float:
    """Return Tukey's HSD q(1 - alpha; M, df) sqrt(MSE / n): means further apart differ, in the unit of the values.

    Source:
        Section 3.
    """
    return studentized_range(len(anova.methods), anova.df, alpha) * math.sqrt(anova.mse / anova.n)


def tukey_p(anova: BlockedAnova) -> Vector:
    """Return p of every pair of methods, (M, M), ones on the diagonal; all NaN without spread.

    This integrates once per pair: seconds for 50 methods. A set of the best needs ``honest_difference`` only.

    Source:
        Section 3; p = P(studentized range > |mi - mj| / sqrt(MSE / n)).
    """
    from scipy.stats import studentized_range as distribution

    count = len(anova.methods)
    p = np.eye(count) if anova.mse else np.full((count, count), np.nan)
    if anova.mse:
        rows, columns = np.triu_indices(count, 1)
        distance = np.abs(anova.means[rows] - anova.means[columns]) / math.sqrt(anova.mse / anova.n)
        p[rows, columns] = p[columns, rows] = distribution.sf(distance, count, anova.df)
    return p
