"""Statistics of the leaderboards: pure functions of numbers, two-sided throughout, none knows a record.

Source numbers are sections of the project's statistics specification. Sums are exact before they are rounded
(``statistics``, ``math.fsum``), so no result depends on the order of the runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Accuracies come from integer counts, but 73.1 - 72.8 is not 0.3 in binary: so many decimals of a difference are kept.
DIFFERENCE_DIGITS = 6


@dataclass(frozen=True)
class Summary:
    """Mean and spread of n runs, in the unit of the values.

    Args:
        n: Number of values, >= 1.
        mean: Their mean.
        std: Standard deviation with ddof = 1; None for one value.
    """

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float
    confidence: float


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


def mean_std(values: Iterable[float]) -> Summary:
    """Return mean and standard deviation (ddof = 1) of at least one value.

    Raises:
        ValueError: If there is no value.

    Source:
        Section 1.3: mean and std are not an interval; std has ddof = 1.
    """
    known = tuple(values)
    std = statistics.stdev(known) if len(known) > 1 else None
    return Summary(len(known), statistics.fmean(known), std)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return mean +- t * std / sqrt(n), or None where the values give no estimate of spread.

    Args:
        values: Independent values, e.g. one difference per seed.
        confidence: Coverage, in (0, 1).

    Source:
        Section 1.3: the t interval covers best for n < 20.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: must lie in (0, 1)")
    if len(set(values)) < 2:
        return None
    from scipy.stats import t

    summary = mean_std(values)
    half = float(t.ppf((1 + confidence) / 2, summary.n - 1)) * _standard_error(values)
    return Interval(summary.mean - half, summary.mean + half, confidence)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference:
    """Compare two arms by the seeds that both completed; run k is never paired with run k.

    Args:
        first: Value of each seed of the arm in question, e.g. accuracies in percent.
        second: The same of the arm it is compared with.
        confidence: Coverage of the interval, in (0, 1).

    Source:
        Sections 1.4 (pairing by intersection), 2 (paired t, rounding, zero variance).
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    values = tuple(round(first[seed] - second[seed], DIFFERENCE_DIGITS) for seed in seeds)
    if not values:
        return PairedDifference(seeds, values, reason="no common seed")
    summary = mean_std(values)
    interval = t_interval(values, confidence)
    if interval is None:
        reason = "one seed" if summary.n == 1 else "zero variance"
        return PairedDifference(seeds, values, summary.mean, summary.std, reason=reason)
    from scipy.stats import t

    statistic = summary.mean / _standard_error(values)
    p = 2 * float(t.sf(abs(statistic), summary.n - 1))
    return PairedDifference(seeds, values, summary.mean, summary.std, interval, statistic, p)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
