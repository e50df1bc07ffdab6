"""Practically equal: two one-sided tests, and posteriors with a region of practical equivalence (ROPE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.describing import Interval
from kdbench.stats.paired import paired_t
from kdbench.stats.values import DIFFERENCE_DIGITS, Integers, Vector, finite, rounded

TIE_DIGITS = 12  # of the masses of two sides, which are sums of rounded numbers
ROPE = 0.2  # points, for test sets of 10k images: the sampling error of a paired gain over five seeds


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests against the borders of the ROPE.

    Args:
        equal: Whether the 90 % t interval lies inside the ROPE, i.e. p < .05; None without spread.
        p: The larger of the two one-sided p-values.
        interval: The interval.
        reason: Why there is no test; empty if there is one.
    """

    equal: bool | None
    p: float | None
    interval: Interval | None
    reason: str = ""


@dataclass(frozen=True)
class Posterior:
    """Probabilities of a difference below, inside and above the ROPE; None without spread, and the reason says so."""

    below: float | None
    inside: float | None
    above: float | None
    reason: str = ""


def tost(differences: Sequence[float], rope: float = ROPE, alpha: float = 0.05) -> Equivalence:
    """Test whether the mean difference is inside (-rope, rope).

    Args:
        differences: One per seed, in points.
        rope: Half width, > 0, fixed before the runs.
        alpha: Level, in (0, .5); the interval covers 1 - 2 alpha.

    Source:
        Section 8: "equal" may be printed only if the 90 % interval lies inside.
    """
    from scipy.special import stdtr, stdtrit  # a hundredth of the time that scipy.stats.t takes

    _check_rope(rope)
    test = paired_t(differences, 1 - 2 * alpha)
    if test.interval is None or test.t is None:
        return Equivalence(None, None, None, test.reason)
    se = test.mean / test.t if test.t else (test.interval.high - test.mean) / float(stdtrit(test.df, 1 - alpha))
    p = max(float(stdtr(test.df, -(test.mean + rope) / se)), float(stdtr(test.df, (test.mean - rope) / se)))
    inside = -rope < test.interval.low and test.interval.high < rope
    return Equivalence(inside, p, test.interval)


def t_posterior(differences: Sequence[float], rope: float = ROPE) -> Posterior:
    """Return the posterior of the mean over independent seeds under the reference prior.

    Student's t with n - 1 degrees of freedom, location mean(d), scale std(d) / sqrt(n). No correction for overlapping
    training sets: seeds are independent runs.

    Args:
        differences: One per seed, in points.
        rope: Half width, >= 0.

    Source:
        Section 4.
    """
    from scipy.stats import t

    _check_rope(rope, zero=True)
    test = paired_t(differences)
    if test.std is None or test.reason:
        return Posterior(None, None, None, test.reason)
    scale = test.std / test.n**0.5
    below = float(t.cdf(-rope, test.df, test.mean, scale))
    above = float(t.sf(rope, test.df, test.mean, scale))
    return Posterior(below, 1 - below - above, above)


def bayes_signed_rank(
    differences: ArrayLike,
    rope: float = ROPE,
    draws: int = 50_000,
    seed: int = 0,
    prior: float = 0.5,
    digits: int | None = DIFFERENCE_DIGITS,
) -> Posterior:
    """Return the shares of posterior draws in which "below", "inside" or "above" the ROPE is the likeliest.

    A draw is a Dirichlet weight on each difference and, with strength ``prior``, on zero; the mass of "above" is the
    sum of w_i w_j over d_i + d_j > 2 rope, half for equality. Without a ROPE the two sides are compared,
    and a tie counts half for each.

    Args:
        differences: One per pair, in points.
        rope: Half width, >= 0.
        draws: Of the posterior; the result's Monte Carlo error is at most .5 / sqrt(draws).
        seed: Of the draws.
        prior: Strength of the prior observation at zero, > 0.
        digits: Decimals of a difference that are kept; None compares floats as they come, as other implementations do,
            so that noise decides where a sum is twice the ROPE.

    Source:
        Section 4; Benavoli et al. 2014. Claim at .95, and only from 6 pairs on.
    """
    _check_rope(rope, zero=True)
    known = finite(differences, "differences").ravel() if digits is None else rounded(differences, digits).ravel()
    known = np.sort(np.append(known, 0.0))
    sums, border = known[:, None] + known[None], 2 * rope
    if digits is not None:
        sums, border = np.round(sums, digits), round(border, digits)
    weights, beyond = _weights(len(known) - 1, int(np.searchsorted(known, 0.0)), draws, seed, prior)
    # Sums grow along a row: those above the border are its last ones, and the running sums of weights give their mass.
    high = _mass(weights, beyond, (sums < border).sum(axis=1), (sums <= border).sum(axis=1))
    low = 1 - _mass(weights, beyond, (sums < -border).sum(axis=1), (sums <= -border).sum(axis=1))
    if rope == 0:
        ahead = float(np.sign(np.round(high - low, TIE_DIGITS)).mean())
        return Posterior((1 - ahead) / 2, 0.0, (1 + ahead) / 2)
    low_share, inside, high_share = np.bincount(np.argmax([low, 1 - high - low, high], axis=0), minlength=3).tolist()
    return Posterior(low_share / draws, inside / draws, high_share / draws)


def _mass(weights: Vector, beyond: Vector, first: Integers, second: Integers) -> Vector:
    """Return for each draw the sum of w_i w_j over j from the first place of row i on, half up to the second one."""
    mass: Vector = np.zeros(weights.shape[1])
    # Row by row: a few that lie in the processor's cache, instead of a copy of all of them.
    for weight, start, end in zip(weights, first.tolist(), second.tolist(), strict=True):
        mass += weight * beyond[start]
        if start != end:
            mass += weight * (beyond[end] - beyond[start]) / 2
    return mass


@lru_cache(maxsize=8)
def _weights(count: int, zero: int, draws: int, seed: int, prior: float) -> tuple[Vector, Vector]:
    """Return the draws and the sums of their weights from each place on; a board asks for the same again and again.

    They are (count + 1, draws) and (count + 2, draws): the prior observation has its place, ``zero``, among the others.
    """
    drawn = _drawn(count, draws, seed, prior)
    weights = np.concatenate((drawn[1 : zero + 1], drawn[:1], drawn[zero + 1 :]))
    beyond = np.zeros((count + 2, draws))
    beyond[:-1] = np.cumsum(weights[::-1], axis=0)[::-1]
    weights.flags.writeable = beyond.flags.writeable = False
    return weights, beyond


@lru_cache(maxsize=2)
def _drawn(count: int, draws: int, seed: int, prior: float) -> Vector:
    """Return weights on the prior observation and on so many differences, (count + 1, draws), row by row in memory."""
    drawn = np.ascontiguousarray(np.random.default_rng(seed).dirichlet([prior, *np.ones(count)], draws).T)
    drawn.flags.writeable = False
    return drawn


def _check_rope(rope: float, *, zero: bool = False) -> None:
    finite(rope, "rope")
    if rope < 0 or (rope == 0 and not zero):
        least = ">= 0" if zero else "> 0"
        raise ValueError(
            f"rope - {rope} - must be {least}, in the unit of the differences - set it in the configuration"
        )
