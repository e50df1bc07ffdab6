"""Several pairs: the mean gain on these pairs (seeds random), or on pairs like these (pairs random).

The two are different questions. Seeds of several pairs are never pooled for the second one: that calls noise of pairs a
gain in a third to a half of all cases (section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.describing import Interval
from kdbench.stats.paired import ONE_SEED, ZERO_VARIANCE, PairedT, paired_t
from kdbench.stats.values import DIFFERENCE_DIGITS, of_each, strata


@dataclass(frozen=True)
class StratifiedT:
    """Mean of pair means with its test.

    Args:
        pairs: Number of pairs P.
        estimate: Mean of the pairs' means, in the unit of the differences.
        se: Its standard error from the spread within pairs; None where a pair has none to give.
        df: Satterthwaite's degrees of freedom.
        reason: Why there is no test; empty if there is one.
    """

    pairs: int
    estimate: float
    se: float | None = None
    t: float | None = None
    df: float | None = None
    p: float | None = None
    interval: Interval | None = None
    reason: str = ""


def stratified_t(by_pair: Sequence[ArrayLike], confidence: float = 0.95) -> StratifiedT:
    """Test the mean gain on these pairs.

    SE = sqrt(sum v) / P with df = (sum v)^2 / sum(v^2 / (n - 1)), where v = s^2 / n of each pair (Satterthwaite).

    Args:
        by_pair: Paired differences of each pair; numbers of seeds may differ, two are the least.
        confidence: Coverage of the interval, in (0, 1).

    Source:
        Section 4 (A).
    """
    parts = strata(by_pair)
    count, estimate = len(parts), fmean(fmean(part) for part in parts)
    if min(len(part) for part in parts) < 2:
        return StratifiedT(count, estimate, reason=ONE_SEED)
    flat = of_each(parts, lambda rows: np.ptp(np.round(rows, DIFFERENCE_DIGITS), axis=1)) == 0
    if flat.all():
        return StratifiedT(count, estimate, reason=ZERO_VARIANCE)
    from scipy.special import stdtr, stdtrit  # a hundredth of the time that scipy.stats.t takes

    sizes = np.array([len(part) for part in parts])
    shares = np.where(flat, 0, of_each(parts, lambda rows: rows.var(axis=1, ddof=1))) / sizes
    se = math.sqrt(shares.sum()) / count
    df = float(shares.sum() ** 2 / (shares**2 / (sizes - 1)).sum())
    statistic = estimate / se
    half = float(stdtrit(df, (1 + confidence) / 2)) * se
    interval = Interval(estimate - half, estimate + half, confidence)
    return StratifiedT(count, estimate, se, statistic, df, 2 * float(stdtr(df, -abs(statistic))), interval)


def pair_means_t(by_pair: Sequence[ArrayLike], confidence: float = 0.95) -> PairedT:
    """Test the mean gain on pairs like these: one value per pair, its mean over seeds.

    Source:
        Section 4 (B): pairs that share a network or a dataset are fewer than they seem.
    """
    return paired_t([fmean(part) for part in strata(by_pair)], confidence)
