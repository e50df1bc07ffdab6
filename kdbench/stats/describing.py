"""Describing runs: mean, spread, and the t interval of a mean. A mean +- std is not an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdbench.stats.values import finite


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
class Description:
    """Everything a footer says about n runs, in the unit of the values.

    Args:
        sem: Standard error of the mean, std / sqrt(n); None for one value.
        interval: t interval of the mean; None without spread.
    """

    n: int
    mean: float
    std: float | None
    sem: float | None
    interval: Interval | None
    median: float
    low: float
    high: float


def mean_std(values: Iterable[float]) -> Summary:
    """Return mean and standard deviation (ddof = 1) of at least one value.

    Raises:
        ValueError: If there is no value, or one is not finite.

    Source:
        Section 1.3: mean and std are not an interval; std has ddof = 1.
    """
    known = tuple(values)
    finite(known, "values")
    return Summary(len(known), statistics.fmean(known), _std(known) if len(known) > 1 else None)


def _std(values: Sequence[float]) -> float:
    """Return the standard deviation, exactly 0 for equal values; fractions would take ten times as long."""
    from_first = [value - values[0] for value in values]
    mean = statistics.fmean(from_first)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in from_first) / (len(values) - 1))


def describe(values: Sequence[float], confidence: float = 0.95) -> Description:
    """Return mean, std, standard error, t interval, median and range of at least one value.

    Source:
        Section 1.3.
    """
    summary = mean_std(values)
    return Description(
        n=summary.n,
        mean=summary.mean,
        std=summary.std,
        sem=standard_error(values) if summary.n > 1 else None,
        interval=t_interval(values, confidence),
        median=statistics.median(values),
        low=min(values),
        high=max(values),
    )


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
    finite(values, "values")
    if len(set(values)) < 2:
        return None
    return interval_of(mean_std(values), confidence)


def interval_of(summary: Summary, confidence: float = 0.95) -> Interval:
    """Return the t interval of a mean from at least two values, which are not all equal."""
    from scipy.special import stdtrit

    half = float(stdtrit(summary.n - 1, (1 + confidence) / 2)) * (summary.std or 0.0) / math.sqrt(summary.n)
    return Interval(summary.mean - half, summary.mean + half, confidence)


def standard_error(values: Sequence[float]) -> float:
    """Return std / sqrt(n) of at least two values."""
    return _std(values) / math.sqrt(len(values))


def mean_of_last(curve: Sequence[float], epochs: int = 5) -> float:
    """Return the mean of the last epochs of a curve: a score with less jitter, if it was declared before the runs.

    Args:
        curve: Accuracy per epoch in percent, by epoch.
        epochs: How many count; at least one, at most all.

    Source:
        Section 7: jitter falls from .117 to .05 points with 5 epochs.
    """
    if not 1 <= epochs <= len(curve):
        raise ValueError(f"curve - {epochs} last epochs - must lie in 1..{len(curve)} - ask for fewer epochs")
    return statistics.fmean(finite(curve, "curve")[-epochs:])


def optimism(curve: Sequence[float]) -> float:
    """Return by how much the best epoch exceeds the last one: what choosing the epoch on test data would claim.

    Source:
        Section 7: .31 points on average over public CIFAR-100 logs, as much as the gains in question.
    """
    known = finite(curve, "curve")
    return float(known.max() - known[-1])
