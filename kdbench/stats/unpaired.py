"""Two samples without common seeds: imported numbers only, and effect sizes that ignore pairing.

Almost stochastic order is here as a reference for what others report; no board uses it (section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.values import Vector, finite


@dataclass(frozen=True)
class Welch:
    """Welch's t test of two independent means; t, df and p are None without spread, and the reason says so."""

    difference: float
    t: float | None
    df: float | None
    p: float | None
    reason: str = ""


@dataclass(frozen=True)
class StochasticOrder:
    """Almost stochastic order of a over b.

    Args:
        violation_ratio: Share of the squared quantile distance in which b is above a, in [0, 1].
        eps_min: Its upper bound at the confidence, in [0, 1]; below .5, a is called almost dominant.
    """

    violation_ratio: float
    eps_min: float


def welch_t(first: ArrayLike, second: ArrayLike) -> Welch:
    """Compare numbers that share no seeds, e.g. imported ones; each sample needs two values.

    Source:
        Section 1.4: over-conservative for arms that are correlated, so never for own runs.
    """
    a, b = finite(first, "first").ravel(), finite(second, "second").ravel()
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Welch(difference, None, None, None, "one value")
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if math.isclose(va + vb, 0, abs_tol=1e-16):
        return Welch(difference, None, None, None, "zero variance")
    from scipy.stats import t

    statistic = difference / math.sqrt(va + vb)
    df = float((va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)))
    return Welch(difference, statistic, df, 2 * float(t.sf(abs(statistic), df)))


def hedges_g(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return the mean difference in pooled standard deviations times 1 - 3 / (4 df - 1); None without spread.

    Source:
        Section 2: ignores pairing, so no verbal label ("large") may be printed from it.
    """
    a, b = finite(first, "first").ravel(), finite(second, "second").ravel()
    df = len(a) + len(b) - 2
    if min(len(a), len(b)) < 2:
        return None
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / df)
    return float((a.mean() - b.mean()) / pooled * (1 - 3 / (4 * df - 1))) if pooled > 1e-8 else None


def cliffs_delta(first: ArrayLike, second: ArrayLike) -> float:
    """Return P(a > b) - P(a < b) over all pairs of values, in [-1, 1].

    Source:
        Section 2: ignores pairing.
    """
    a, b = finite(first, "first").ravel(), finite(second, "second").ravel()
    return float(np.sign(np.round(a[:, None] - b[None, :], 9)).mean())


def unpaired_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """Return the probability that a run of the first exceeds one of the second, averaged over pairs, in [0, 1].

    Args:
        first: (runs, pairs); ties count one half.
        second: (runs, pairs), the numbers of runs may differ.

    Source:
        Section 4: not paired by seed; boards print ``paired_improvement``.
    """
    a, b = (np.atleast_2d(finite(values, name).T).T for values, name in ((first, "first"), (second, "second")))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"second - {b.shape[1]} pairs - must be {a.shape[1]}, as in the first - give the same pairs")
    return float((np.sign(np.round(a[:, None] - b[None], 9)).mean(axis=(0, 1)) / 2 + 0.5).mean())


def stochastic_order(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = 0.95,
    step: float = 0.005,
    resamples: int = 10_000,
    seed: int = 0,
) -> StochasticOrder:
    """Return the violation ratio of "first is stochastically above second" and its bootstrap upper bound.

    With the empirical quantile functions A and B, the ratio is int max(B - A, 0)^2 / int (B - A)^2 over (0, 1]; its
    bound adds z(confidence) times the standard deviation of the ratio over resamples of both. Equal samples give .5.

    Args:
        first: Scores of the one.
        second: Scores of the other.
        confidence: One-sided, in (0, 1).
        step: Distance of the quantiles.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Source:
        Del Barrio et al. 2018 and Dror et al. 2019, by the description in section 4: it calls equal methods
        different in 20 % of all cases.
    """
    from scipy.stats import norm

    a, b = np.sort(finite(first, "first").ravel()), np.sort(finite(second, "second").ravel())
    levels: Vector = np.arange(1, round(1 / step) + 1, dtype=np.float64) * np.float64(step)
    random = np.random.default_rng(seed)
    drawn = _violation(
        a[random.integers(0, len(a), (resamples, len(a)))], b[random.integers(0, len(b), (resamples, len(b)))], levels
    )
    ratio = float(_violation(a, b, levels))
    return StochasticOrder(ratio, float(np.clip(ratio + norm.ppf(confidence) * drawn.std(), 0, 1)))


def _violation(a: Vector, b: Vector, levels: Vector) -> Vector:
    gap = _quantiles(b, levels) - _quantiles(a, levels)
    total = np.square(gap).sum(axis=-1)
    above = np.square(np.maximum(gap, 0)).sum(axis=-1)
    ratio: Vector = np.where(total > 0, above / np.where(total > 0, total, 1), 0.5)
    return ratio


def _quantiles(values: Vector, levels: Vector) -> Vector:
    # Rounded, since .15 * 20 is a little more than 3 and would ask for the fourth value.
    places = np.ceil(np.round(levels * values.shape[-1], 9)).astype(int) - 1
    ordered: Vector = np.sort(values, axis=-1)[..., places]
    return ordered
