"""Wilcoxon's signed-rank test over pair means: exact with ties and zeros, one comparison or all pairs of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from kdbench.stats.families import holm
from kdbench.stats.signs import attainable, share_at_least
from kdbench.stats.values import DIFFERENCE_DIGITS, Vector, finite, rounded

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
    from scipy.stats import rankdata

    known = rounded(differences, digits).ravel()
    if not len(known):
        raise ValueError("differences - there are none - at least one is needed - compare methods on common pairs")
    count = int((known == 0).sum())
    if zeros == "wilcox":
        known = known[known != 0]
    ranks: Vector = rankdata(np.abs(known)) if len(known) else known
    split = float(ranks[known == 0].sum()) / 2 if zeros == "zsplit" else 0.0
    positive = float(ranks[known > 0].sum()) + split
    negative = float(ranks[known < 0].sum()) + split
    weights = np.rint(2 * ranks[known != 0]).astype(np.int64)  # mid-ranks are halves
    observed = round(2 * (positive - negative))
    far, _ = share_at_least(weights, abs(observed))
    high = far if observed >= 0 else share_at_least(weights, observed)[0]
    floor = attainable(len(weights)).two_sided if len(weights) else 1.0
    p = min(1.0, 2 * far) if observed else 1.0
    return Wilcoxon(
        len(known) + (count if zeros == "wilcox" else 0),
        count,
        min(positive, negative),
        positive,
        negative,
        p,
        high,
        floor,
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
    known = {method: finite(values, method) for method, values in scores.items()}
    raw = tuple(wilcoxon(known[a] - known[b], zeros, digits).p_two_sided for a, b in names)
    return PairwiseWilcoxon(names, raw, tuple(p for p in holm(raw) if p is not None))
