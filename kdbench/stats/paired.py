"""Two arms by common seed: differences, the paired t test, effect size, and whether pairing paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdbench.stats.describing import Interval, interval_of, mean_std
from kdbench.stats.values import DIFFERENCE_DIGITS, finite

Alternative = Literal["two-sided", "greater", "less"]
NO_COMMON_SEED = "no common seed"
ONE_SEED = "one seed"
ZERO_VARIANCE = "zero variance"


@dataclass(frozen=True)
class PairedDifference:
    """First arm minus second arm over the seeds both have.

    Args:
        seeds: Common seeds, ascending.
        values: Difference of each, rounded to 6 decimals.
        mean: Mean difference; None without a common seed.
        std: Standard deviation of the differences (ddof = 1); None for fewer than two.
        interval: t interval of the mean, or None.
        t: Paired t statistic with n - 1 degrees of freedom, or None.
        p: Its two-sided p-value, for this one comparison, or None.
        reason: Why there is no interval; empty if there is one.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float | None = None
    std: float | None = None
    interval: Interval | None = None
    t: float | None = None
    p: float | None = None
    reason: str = ""

    @property
    def n(self) -> int:
        """Number of common seeds."""
        return len(self.seeds)

    @property
    def dz(self) -> float | None:
        """Effect size mean / std of the differences, for planning; None without spread."""
        return self.mean / self.std if self.mean is not None and self.std and self.interval else None


@dataclass(frozen=True)
class PairedT:
    """t test of the mean of n differences against zero.

    Args:
        df: Degrees of freedom, n - 1.
        t: mean / (std / sqrt(n)); None without spread.
        p: p-value of the alternative; None without spread: no spread means no estimate of one, not p = 0.
        interval: t interval of the mean; with a one-sided alternative one end is infinite.
        dz: mean / std.
        reason: Why there is no test; empty if there is one.
    """

    n: int
    mean: float
    std: float | None
    df: int
    t: float | None = None
    p: float | None = None
    interval: Interval | None = None
    dz: float | None = None
    reason: str = ""


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference:
    """Compare two arms by the seeds that both completed; run k is never paired with run k.

    Args:
        first: Value of each seed of the arm in question, e.g. accuracies in percent.
        second: The same of the arm it is compared with.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If a difference is not finite.

    Source:
        Sections 1.4 (pairing by intersection), 2 (paired t, rounding, zero variance).
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    values = tuple(round(first[seed] - second[seed], DIFFERENCE_DIGITS) for seed in seeds)
    if not values:
        return PairedDifference(seeds, values, reason=NO_COMMON_SEED)
    test = paired_t(values, confidence)
    return PairedDifference(seeds, values, test.mean, test.std, test.interval, test.t, test.p, test.reason)


def paired_t(differences: Sequence[float], confidence: float = 0.95, alternative: Alternative = "two-sided") -> PairedT:
    """Test whether the mean of paired differences is zero: t = mean / (std / sqrt(n)) with n - 1 degrees of freedom.

    Args:
        differences: One per seed, e.g. in points.
        confidence: Coverage of the interval, in (0, 1).
        alternative: Boards use two-sided tests only: many methods are worse than their baseline.

    Raises:
        ValueError: Without a difference, or if one is not finite.

    Source:
        Section 2; zero variance (after rounding to 6 decimals) has no t and no p.
    """
    from scipy.special import stdtr, stdtrit  # a hundredth of the time that scipy.stats.t takes

    summary = mean_std(differences)
    df = summary.n - 1
    if len({round(value, DIFFERENCE_DIGITS) for value in differences}) < 2:
        reason = ONE_SEED if summary.n == 1 else ZERO_VARIANCE
        return PairedT(summary.n, summary.mean, summary.std, df, reason=reason)
    error = (summary.std or 0.0) / math.sqrt(summary.n)
    statistic = summary.mean / error
    interval = interval_of(summary, confidence)
    if alternative == "two-sided":
        p = 2 * float(stdtr(df, -abs(statistic)))
    else:
        sign = 1 if alternative == "greater" else -1
        p = float(stdtr(df, -sign * statistic))
        bound = summary.mean - sign * float(stdtrit(df, confidence)) * error
        low, high = (bound, math.inf) if sign > 0 else (-math.inf, bound)
        interval = Interval(low, high, confidence)
    dz = statistic / math.sqrt(summary.n)
    return PairedT(summary.n, summary.mean, summary.std, df, statistic, p, interval, dz)


def seed_correlation(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Return the correlation of two arms over their common seeds: what pairing has bought; None without spread.

    Source:
        Section 1.4: var(d) = s1^2 + s2^2 - 2 rho s1 s2; print rho per pair, keep the paired test at any rho.
    """
    seeds = sorted(first.keys() & second.keys())
    arms = finite([[arm[seed] for seed in seeds] for arm in (first, second)], "accuracies")
    if len(seeds) < 3 or (np.ptp(np.round(arms, DIFFERENCE_DIGITS), axis=1) == 0).any():
        return None
    return float(np.asarray(np.corrcoef(arms))[0, 1])
