"""Wilcoxon's signed-rank test over pair means: exact with ties and zeros, one comparison or all pairs of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.families import holm
from kdbench.stats.signs import attainable, share_at_least
from kdbench.stats.values import DIFFERENCE_DIGITS, Integers, Vector, finite, rounded

Zeros = Literal["wilcox", "pratt", "zsplit"]


@dataclass(frozen=True)
class Wilcoxon:
    """Signed-rank test.

    Args:
        n: Number of differences, zeros included.
        zeros: How many of them are zero.
        statistic: The smaller of the two rank sums.
        positive: Sum of the ranks of positive differences.
        negative: Sum of the ranks of negative ones.
        p_two_sided: Exact share of sign patterns at least as extreme; 1 if all differences are zero.
        p_greater: Exact one-sided p of "positive".
        floor: Smallest two-sided p that as many non-zero differences can give.
    """

    n: int
    zeros: int
    statistic: float
    positive: float
    negative: float
    p_two_sided: float
    p_greater: float
    floor: float


@dataclass(frozen=True)
class PairwiseWilcoxon:
    """All pairs of methods by Wilcoxon over pair means.

    Args:
        names: The two methods of each comparison, in the order of the methods.
        p: Exact two-sided p-value of each.
        p_holm: The same after Holm over all comparisons.
    """

    names: tuple[tuple[str, str], ...]
    p: tuple[float, ...]
    p_holm: tuple[float, ...]


def wilcoxon(differences: ArrayLike, zeros: Zeros = "wilcox", digits: int = DIFFERENCE_DIGITS) -> Wilcoxon:
    """Rank the rounded differences by size and count sign patterns with as extreme a rank sum.

    The null distribution is that of the mid-ranks at hand, so ties and zeros are exact at any n; the normal
    approximation goes below the smallest attainable p, and tables for distinct ranks are wrong with ties.

    Args:
        differences: One per pair (never one per seed and pair), at least one.
        zeros: wilcox drops zeros; pratt ranks them and then drops them; zsplit gives each sign half of their ranks.
        digits: Decimals of a difference that are kept.

    Source:
        Sections 4 (B) and 9.
    """
    return next(_tests(rounded(differences, digits).reshape(1, -1), zeros))


def _tests(differences: Vector, zeros: Zeros) -> Iterator[Wilcoxon]:
    """Yield the test of each row; all rows are ranked at once.

    Args:
        differences: (tests, n), rounded.
        zeros: How differences of zero are treated.
    """
    from scipy.stats import rankdata

    if not differences.shape[1]:
        raise ValueError("differences - there are none - at least one is needed - compare methods on common pairs")
    none = differences == 0
    counts = none.sum(axis=1)
    ranks: Vector = rankdata(np.abs(differences), axis=1)
    if zeros == "wilcox":
        ranks = ranks - counts[:, None]  # zeros have the lowest ranks
    split = np.where(none, ranks, 0).sum(axis=1) / 2 if zeros == "zsplit" else np.zeros(len(ranks))
    positive = np.where(differences > 0, ranks, 0).sum(axis=1) + split
    negative = np.where(differences < 0, ranks, 0).sum(axis=1) + split
    doubled = np.rint(2 * ranks).astype(np.int64)  # mid-ranks are halves
    rows = zip(doubled, ~none, counts.tolist(), positive.tolist(), negative.tolist(), strict=True)
    for weights, signed, count, above, below in rows:
        yield _test(weights[signed], count, above, below)


def _test(weights: Integers, zeros: int, positive: float, negative: float) -> Wilcoxon:
    """Return the test of doubled ranks of differences that are not zero, beside so many that are."""
    observed = round(2 * (positive - negative))
    far, _ = share_at_least(weights, abs(observed))
    return Wilcoxon(
        n=len(weights) + zeros,
        zeros=zeros,
        statistic=min(positive, negative),
        positive=positive,
        negative=negative,
        p_two_sided=min(1.0, 2 * far) if observed else 1.0,
        p_greater=far if observed >= 0 else share_at_least(weights, observed)[0],
        floor=attainable(len(weights)).two_sided if len(weights) else 1.0,
    )


def pairwise_wilcoxon(
    scores: Mapping[str, Sequence[float]], zeros: Zeros = "wilcox", digits: int = DIFFERENCE_DIGITS
) -> PairwiseWilcoxon:
    """Compare all pairs of methods over pair means; unlike Nemenyi's, no verdict depends on a third method.

    Args:
        scores: Mean of each pair, of each method; the same pairs in the same order.
        zeros: How differences of zero are treated.
        digits: Decimals of a difference that are kept.

    Source:
        Section 4: what a diagram of critical differences is drawn from.
    """
    names = tuple(combinations(scores, 2))
    known = [finite(values, method).ravel() for method, values in scores.items()]
    raw = tuple(
        test.p_two_sided
        for index, values in enumerate(known[:-1])
        for test in _tests(rounded(values - np.array(known[index + 1 :]), digits), zeros)
    )
    return PairwiseWilcoxon(names, raw, tuple(p for p in holm(raw) if p is not None))
