"""Tests from signs alone: sign-flip, exact wherever possible, and the smallest p that such tests can give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdbench.stats.values import DIFFERENCE_DIGITS, Integers, Vector, finite, rounded, strata

SMALL = 16  # so many signs are enumerated whatever their weights
HALVES = 40  # so many signs are enumerated as two halves of 2^20 patterns
DIGIT = 64  # bits of a count of patterns; fewer signs than that cannot overflow it
LONGEST = 10**6  # sum of weights up to which patterns of fewer signs than that are counted in whole numbers
DOUBLINGS = 512  # a float holds so many: counts are turned into shares before there are more
STEPS = 10**9  # additions that counting all sums may take
KEPT = 10**6  # additions, and bytes in proportion, up to which the counts are kept for the next call
DRAWS = 99_999
EXACT, ROUNDED = 2.0**62, 2.0**52  # largest sum of whole numbers; and of those that a float still holds

Counts = NDArray[np.uint64]


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
    return Floor(n, one, two, math.floor(Fraction(alpha) * 2**n), math.floor(Fraction(alpha) * 2 ** (n - 1)))


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
    parts = strata(by_pair)
    sizes = [len(part) for part in parts]
    known = rounded(np.concatenate(parts), digits)
    signed, slack = _in_whole_units(known, sizes, digits)
    values = iter(known.tolist())
    statistic = fmean(fmean(islice(values, size)) for size in sizes)
    weights, observed = np.abs(signed[signed != 0]), int(signed.sum())
    floor = attainable(len(weights)).two_sided if len(weights) else 1.0
    far, exact = share_at_least(weights, abs(observed) - slack, seed)
    high = far if observed >= 0 else share_at_least(weights, observed - slack, seed)[0]
    return SignFlip(len(signed), statistic, min(1.0, 2 * far) if observed else 1.0, high, floor, exact)


def _in_whole_units(differences: Vector, sizes: Sequence[int], digits: int) -> tuple[Integers, int]:
    """Return each difference's part in the sum of the pairs' means, and by how much two equal sums may differ.

    In units of 10^-digits over a common multiple of the sizes sums are exact and ties are ties. Where so many unlike
    sizes have no multiple that fits, parts are rounded, and what is as near as rounding counts as a tie.
    """
    common, of_pair = math.lcm(*sizes), np.repeat(sizes, sizes)
    units = np.rint(differences * 10**digits)
    whole = float(np.abs(units / of_pair).sum())
    if not whole:
        return np.zeros(len(units), dtype=np.int64), 0
    if common < EXACT and common * whole < EXACT:
        return units.astype(np.int64) * np.repeat([common // size for size in sizes], sizes), 0
    return np.rint(units / of_pair * (ROUNDED / whole)).astype(np.int64), 2 * len(units)


def share_at_least(weights: Integers, bound: int, seed: int = 0) -> tuple[float, bool]:
    """Return the share of sign patterns whose signed sum of weights is at least a bound, and whether it is exact.

    Args:
        weights: Positive integers; none gives the one empty sum 0.
        bound: Any integer.
        seed: Of the draws, where the patterns are too many to count.
    """
    divisor = int(np.gcd.reduce(weights)) if len(weights) else 1
    weights, bound = weights // divisor, -(-bound // divisor)
    total = int(weights.sum())
    # Additions that counting all sums takes; a pattern of a half takes as long as a hundred of them.
    counted = total * len(weights)
    if len(weights) <= HALVES and (len(weights) <= SMALL or counted > 100 * 2 ** (len(weights) // 2)):
        half = len(weights) // 2
        left, right = _sums(weights[:half]), np.sort(_sums(weights[half:]))
        count = len(left) * len(right) - int(np.searchsorted(right, bound - left, side="left").sum())
        return count / 2.0 ** len(weights), True
    if counted <= STEPS:
        # A sum is at least the bound if and only if no more than this of the weight is negative.
        most, ordered = max(-1, min(total, (total - bound) // 2)), tuple(sorted(weights.tolist()))
        if len(weights) < DIGIT and total < LONGEST:
            halves = (_kept_halves if counted <= KEPT else _halves)(ordered)
            return _count_up_to(*halves, most) / 2.0 ** len(weights), True
        share = _kept_shares(ordered)[: most + 1] if counted <= KEPT else _shares(ordered, most)
        return float(share[::-1].copy().sum()), True  # from the greatest sum on, and one after another in memory
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(DRAWS // 9999):
        signs = random.integers(0, 2, (9999, len(weights)), dtype=np.int64) * 2 - 1
        hits += int((signs @ weights >= bound).sum())
    drawn = DRAWS // 9999 * 9999
    return (hits + 1) / (drawn + 1), False


def _count_up_to(counts: Counts, up_to: Counts, most: int) -> int:
    """Return how many patterns have no more than ``most`` of the weight negative; fewer than 64 signs.

    Args:
        counts: Of one half of the signs, see :func:`_halves`.
        up_to: Of the other half.
        most: At most the sum of all; -1 = there is no such pattern.
    """
    left = counts[: most + 1]
    room = np.minimum(most - np.arange(len(left)), len(up_to) - 1)  # what the other half may have negative
    return int((left * up_to[room]).sum())


def _halves(weights: tuple[int, ...]) -> tuple[Counts, Counts]:
    """Return how many patterns of every other sign have k of the weight negative, and of the rest at most k."""
    up_to = np.cumsum(_counts(weights[1::2]))
    up_to.flags.writeable = False
    return _counts(weights[::2]), up_to


# Ranks without ties are the same for all methods of a board.
_kept_halves = lru_cache(maxsize=256)(_halves)


def _counts(weights: Sequence[int]) -> Counts:
    """Return how many patterns have k of the weight negative, for each k: the coefficients of a polynomial.

    They are the digits of one whole number, so that a step is one addition.
    """
    counts = 1
    for weight in weights:
        counts += counts << DIGIT * weight
    return np.frombuffer(counts.to_bytes(DIGIT // 8 * (sum(weights) + 1), "little"), "<u8")


def _shares(weights: Sequence[int], most: int) -> Vector:
    """Return the share of patterns of which k of the weight is negative, for each k up to ``most``.

    Args:
        weights: Ascending, so that most steps touch a small part.
        most: -1 = there is no such k.
    """
    share = np.zeros(most + 1)
    share[:1], reach = 1.0, 1
    for step, weight in enumerate(weights, 1):
        if step % DOUBLINGS == 0:
            share[:reach] /= 2.0**DOUBLINGS
        if weight <= most:
            reach = min(reach + weight, most + 1)
            share[weight:reach] += share[: reach - weight]
    return share / 2.0 ** (len(weights) % DOUBLINGS)


@lru_cache(maxsize=256)
def _kept_shares(weights: tuple[int, ...]) -> Vector:
    share = _shares(weights, sum(weights))
    share.flags.writeable = False
    return share


def _sums(weights: Integers) -> Integers:
    sums = np.zeros(1, dtype=np.int64)
    for weight in weights:
        sums = np.concatenate((sums - weight, sums + weight))
    return sums
