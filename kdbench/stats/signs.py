"""Tests from signs alone: sign-flip, exact wherever possible, and the smallest p that such tests can give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.values import DIFFERENCE_DIGITS, Integers, Vector, finite, rounded, strata

SMALL = 16  # so many signs are enumerated whatever their weights
HALVES = 40  # so many signs are enumerated as two halves of 2^20 patterns
DIGIT = 64  # bits of a count of patterns; fewer signs than that cannot overflow it
LONGEST = 10**6  # counts that are kept in one number
STEPS = 10**9  # additions that counting all sums may take
KEPT = 10**6  # additions, and bytes in proportion, up to which the counts are kept for the next call
DRAWS = 99_999


@dataclass(frozen=True)
class Floor:
    """The smallest p that any exact test from signs can give with n differences.

    Args:
        one_sided: 2^-n.
        two_sided: 2^(1 - n).
        family_one_sided: Most comparisons in which Holm can still reject one, floor(alpha / p).
        family_two_sided: The same of the two-sided test.
    """

    n: int
    one_sided: float
    two_sided: float
    family_one_sided: int
    family_two_sided: int


@dataclass(frozen=True)
class SignFlip:
    """Sign-flip permutation test of a mean.

    Args:
        statistic: The mean, or the mean of the pairs' means.
        p_two_sided: Share of sign patterns whose statistic is at least as far from zero; 1 if all are zero.
        p_greater: Share of sign patterns whose statistic is at least as high.
        floor: Smallest two-sided p that these differences could have given.
        exact: Whether all patterns were counted; else 99 999 were drawn.
    """

    n: int
    statistic: float
    p_two_sided: float
    p_greater: float
    floor: float
    exact: bool

    @property
    def at_floor(self) -> bool:
        """Whether p cannot be smaller whatever the data; print the floor beside it."""
        return self.p_two_sided <= self.floor * (1 + 1e-9)


def attainable(n: int, alpha: float = 0.05) -> Floor:
    """Return the smallest p of sign-flip, Wilcoxon and sign test with n differences.

    Raises:
        ValueError: For n < 1 or alpha outside (0, 1).

    Source:
        Section 1.1: with five seeds no two-sided test from signs can reach .05.
    """
    if n < 1 or not 0 < alpha < 1:
        raise ValueError(f"floor of p - n {n}, alpha {alpha} - n >= 1 and 0 < alpha < 1 - correct the number")
    one, two = 2.0**-n, 2.0 ** (1 - n)
    return Floor(n, one, two, math.floor(alpha / one), math.floor(alpha / two))


def sign_flip(differences: ArrayLike, digits: int = DIFFERENCE_DIGITS, seed: int = 0) -> SignFlip:
    """Test mean(d) = 0 by flipping signs: the share of the 2^n patterns with |mean(e d)| >= |mean(d)|, ties counted.

    Source:
        Sections 1.1 and 9. Within a pair never the criterion below 8 seeds.
    """
    return stratified_sign_flip([finite(differences, "differences")], digits, seed)


def stratified_sign_flip(by_pair: Sequence[ArrayLike], digits: int = DIFFERENCE_DIGITS, seed: int = 0) -> SignFlip:
    """Test the mean of the pairs' means by flipping the signs of all differences independently.

    Args:
        by_pair: Differences of each pair; numbers of seeds may differ.
        digits: Decimals of a difference that are kept.
        seed: Of the draws, where the patterns are too many to count.

    Source:
        Section 4 (A): on these pairs. The floor is 2^(1 - Pn).
    """
    parts = [rounded(values, digits) for values in strata(by_pair)]
    # In whole units of 10^-digits times a common multiple of the sizes, sums are exact and ties are ties.
    common = math.lcm(*(len(part) for part in parts))
    signed = np.concatenate([np.rint(part * 10**digits).astype(np.int64) * (common // len(part)) for part in parts])
    statistic = fmean(fmean(part) for part in parts)
    weights, observed = np.abs(signed[signed != 0]), int(signed.sum())
    floor = attainable(len(weights)).two_sided if len(weights) else 1.0
    far, exact = share_at_least(weights, abs(observed), seed)
    high = far if observed >= 0 else share_at_least(weights, observed, seed)[0]
    return SignFlip(len(signed), statistic, min(1.0, 2 * far) if observed else 1.0, high, floor, exact)


def share_at_least(weights: Integers, bound: int, seed: int = 0) -> tuple[float, bool]:
    """Return the share of sign patterns whose signed sum of weights is at least a bound, and whether it is exact.

    Args:
        weights: Positive integers; none gives the one empty sum 0.
        bound: Any integer.
        seed: Of the draws, where the patterns are too many to count.
    """
    divisor = int(np.gcd.reduce(weights)) if len(weights) else 1
    weights, bound = weights // divisor, math.ceil(bound / divisor)
    total = int(weights.sum())
    counted = total * len(
        weights
    )  # additions that counting all sums takes; a half's pattern takes as long as a hundred
    if len(weights) <= HALVES and (len(weights) <= SMALL or counted > 100 * 2 ** (len(weights) // 2)):
        half = len(weights) // 2
        left, right = _sums(weights[:half]), np.sort(_sums(weights[half:]))
        count = len(left) * len(right) - int(np.searchsorted(right, bound - left, side="left").sum())
        return count / 2.0 ** len(weights), True
    if counted <= STEPS:
        ordered = tuple(sorted(weights.tolist()))
        share = _kept_shares(ordered) if counted <= KEPT else _shares(ordered)
        return float(share[max(0, math.ceil((bound + total) / 2)) :].sum()), True
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(DRAWS // 9999):
        signs = random.integers(0, 2, (9999, len(weights)), dtype=np.int64) * 2 - 1
        hits += int((signs @ weights >= bound).sum())
    drawn = DRAWS // 9999 * 9999
    return (hits + 1) / (drawn + 1), False


def _shares(weights: Sequence[int]) -> Vector:
    """Return the share of patterns of which k of the weight is positive, for each k; the signed sum is 2 k - total.

    Args:
        weights: Ascending.
    """
    if len(weights) < DIGIT and sum(weights) < LONGEST:  # a polynomial; its coefficients are the digits of one number
        counts = 1
        for weight in weights:
            counts += counts << DIGIT * weight
        digits = np.frombuffer(counts.to_bytes(DIGIT // 8 * (sum(weights) + 1), "little"), "<u8")
        return _read_only(digits / 2.0 ** len(weights))
    share = np.zeros(sum(weights) + 1)
    share[0], reach = 1.0, 1
    for weight in weights:  # ascending, so that most steps touch a small part
        share[:reach] /= 2
        part = share[:reach].copy()
        reach += weight
        share[weight:reach] += part
    return _read_only(share)


def _read_only(share: Vector) -> Vector:
    share.flags.writeable = False
    return share


# Ranks without ties are the same for all methods of a board.
_kept_shares = lru_cache(maxsize=256)(_shares)


def _sums(weights: Integers) -> Integers:
    sums = np.zeros(1, dtype=np.int64)
    for weight in weights:
        sums = np.concatenate((sums - weight, sums + weight))
    return sums
