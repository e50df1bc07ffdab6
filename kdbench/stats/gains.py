"""Aggregates of gains over pairs and seeds: interquartile mean, share of improvements, bootstrap, gap closed.

Only of gains over a baseline: of raw accuracies the interquartile mean drops whole easy and hard pairs, not bad runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.describing import Interval
from kdbench.stats.values import DIFFERENCE_DIGITS, Vector, finite, of_each, rounded, strata

CHUNK = 2_000_000  # values drawn at a time
LEAST_GAP = 2.0  # points


@dataclass(frozen=True)
class BootstrapIntervals:
    """Bootstrap intervals of a mean; all None if all values are equal."""

    percentile: Interval | None
    bca: Interval | None
    basic: Interval | None
    reason: str = ""


@dataclass(frozen=True)
class StratifiedBootstrap:
    """Percentile intervals over resamples within pairs: of the mean of pair means, and of the interquartile mean."""

    mean: Interval
    iqm: Interval


def iqm(values: ArrayLike) -> float:
    """Return the mean of the middle half of all values: sorted, without the floor(N / 4) lowest and highest.

    Source:
        Section 4: on gains only.
    """
    known = finite(values, "gains").ravel()
    if not len(known):
        raise ValueError("gains - there are none - at least one is needed - compare methods on common seeds")
    return float(_middle(known))


def paired_improvement(by_pair: Sequence[ArrayLike]) -> float:
    """Return the share of (pair, seed) with a positive difference, ties one half, in [0, 1]; every pair counts alike.

    Source:
        Section 4; Bouthillier et al. 2021, paired.
    """
    return fmean(of_each(strata(by_pair), lambda rows: (np.sign(rounded(rows)) / 2 + 0.5).mean(axis=1)).tolist())


def gap_closed(accuracy: float, student: float, teacher: float) -> float | None:
    """Return (accuracy - student) / (teacher - student), or None for a gap below 2 points, where it explodes.

    Args:
        accuracy: Of the method, in percent.
        student: Of the student without a teacher, in percent.
        teacher: Of the teacher, in percent.

    Source:
        Section 4.
    """
    finite([accuracy, student, teacher], "accuracies")
    gap = round(teacher - student, DIFFERENCE_DIGITS)
    return (accuracy - student) / gap if gap >= LEAST_GAP else None


def bootstrap_mean(
    differences: ArrayLike, confidence: float = 0.95, resamples: int = 50_000, seed: int = 0
) -> BootstrapIntervals:
    """Return percentile, BCa and basic bootstrap intervals of a mean.

    Args:
        differences: At least two; below 10 these intervals are far too narrow.
        confidence: Coverage, in (0, 1).
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Source:
        Section 1.3: an optional column for n >= 10, never instead of the t interval. BCa: Efron 1987, jackknife
        acceleration.
    """
    known = np.sort(finite(differences, "differences").ravel())
    if len(known) < 2 or np.ptp(np.round(known, DIFFERENCE_DIGITS)) == 0:
        return BootstrapIntervals(None, None, None, "one seed" if len(known) == 1 else "zero variance")
    from scipy.stats import norm

    means = _resampled([known], resamples, seed, lambda drawn: drawn.mean(axis=1))
    mean, tail = float(known.mean()), (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # Resamples equal to the mean count half on either side, else the bias of a lattice is taken for skew.
    share = (means < mean - 1e-12).mean() + (np.abs(means - mean) <= 1e-12).mean() / 2
    centred = known - mean
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    z = norm.ppf(share) + norm.ppf([tail, 1 - tail])
    levels = norm.cdf(norm.ppf(share) + z / (1 - acceleration * z))
    bca = np.quantile(means, levels)
    return BootstrapIntervals(
        percentile=Interval(float(low), float(high), confidence),
        bca=Interval(float(bca[0]), float(bca[1]), confidence),
        basic=Interval(2 * mean - float(high), 2 * mean - float(low), confidence),
    )


def stratified_bootstrap(
    by_pair: Sequence[ArrayLike], confidence: float = 0.95, resamples: int = 50_000, seed: int = 0
) -> StratifiedBootstrap:
    """Return percentile intervals of the mean of pair means and of the interquartile mean.

    Seeds are resampled within each pair. Given paired differences, a seed is drawn for both arms at once.

    Args:
        by_pair: Values of each pair, e.g. paired differences in points; numbers of seeds may differ.
        confidence: Coverage, in (0, 1); the true one is lower, .83 for 3 pairs of 3 seeds.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Source:
        Section 4.
    """
    parts = strata(by_pair)
    edges = np.cumsum([0, *(len(part) for part in parts)])

    def both(drawn: Vector) -> Vector:
        means = np.mean([drawn[:, a:b].mean(axis=1) for a, b in pairwise(edges)], axis=0)
        return np.stack((means, _middle(drawn)), axis=1)

    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled(parts, resamples, seed, both), [tail, 1 - tail], axis=0)
    mean, middle = (Interval(float(a), float(b), confidence) for a, b in zip(low, high, strict=True))
    return StratifiedBootstrap(mean, middle)


def _middle(values: Vector) -> Vector:
    cut = values.shape[-1] // 4
    middle: Vector = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle


def _resampled(parts: Sequence[Vector], resamples: int, seed: int, statistic: Callable[[Vector], Vector]) -> Vector:
    """Return the statistic of each resample; drawn in portions, so that large boards fit in memory."""
    random = np.random.default_rng(seed)
    portion = max(1, CHUNK // sum(len(part) for part in parts))
    found = []
    for start in range(0, resamples, portion):
        size = min(portion, resamples - start)
        drawn = [part[random.integers(0, len(part), (size, len(part)))] for part in parts]
        found.append(statistic(np.concatenate(drawn, axis=1)))
    return np.concatenate(found)
