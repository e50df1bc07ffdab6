"""Ranks over pairs: Friedman with Iman-Davenport's F, Nemenyi's critical difference, mean rank and Borda points.

Blocks are pairs, never seeds. Nemenyi's verdict on two methods depends on which others are in the table (section 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.stats.blocked import studentized_range
from kdbench.stats.values import Vector, finite

DIGITS = 9  # decimals of a score below which two are tied


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over N pairs and k methods.

    Args:
        chi2: Tie-corrected statistic with k - 1 degrees of freedom; None if all methods tie on every pair.
        p_chi2: Its p-value; an approximation for N > 10 and k > 5.
        kendall_w: Agreement of the pairs, chi2 / (N (k - 1)), in [0, 1].
        f: Iman-Davenport's (N - 1) chi2 / (N (k - 1) - chi2); infinite if all pairs rank alike.
        f_df: Its degrees of freedom (k - 1, (k - 1)(N - 1)).
        p_f: Its p-value; None where f is infinite, which is no evidence without end.
        mean_ranks: Of each method, 1 = best.
        reason: Why there is no test, or no p of F; else empty.
    """

    methods: tuple[str, ...]
    pairs: int
    mean_ranks: tuple[float, ...]
    f_df: tuple[int, int]
    chi2: float | None = None
    p_chi2: float | None = None
    kendall_w: float | None = None
    f: float | None = None
    p_f: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Borda:
    """A display order, no test.

    Args:
        mean_rank: 1 = best, mid-ranks.
        points: Sum over pairs of k - rank.
        place: By points; equal points share the better place.
    """

    methods: tuple[str, ...]
    mean_rank: tuple[float, ...]
    points: tuple[float, ...]
    place: tuple[int, ...]


def rank_table(scores: Mapping[str, Sequence[float]]) -> Vector:
    """Return the rank of every method on every pair, (N, k): 1 = highest score, mid-ranks for ties.

    Args:
        scores: Score on each pair, of each method; higher is better.

    Raises:
        ValueError: If a method lacks a pair: rows must be complete, a missing one is no zero.
    """
    from scipy.stats import rankdata

    sizes = {len(values) for values in scores.values()}
    if len(sizes) != 1 or not min(sizes):
        counts = ", ".join(f"{method} {len(values)}" for method, values in scores.items()) or "no method"
        raise ValueError(
            f"ranks - pairs per method: {counts} - each needs one on each pair - leave out the method or the pair"
        )
    table = np.round(finite(list(scores.values()), "scores"), DIGITS).T
    ranks: Vector = rankdata(-table, axis=1)
    return ranks


def friedman(scores: Mapping[str, Sequence[float]]) -> Friedman:
    """Test whether all methods rank alike.

    Args:
        scores: Mean on each pair, of each of at least two methods.

    Source:
        Section 4; Demsar 2006, section 3.2.2, with the correction for ties.
    """
    from scipy.stats import chi2 as chi_square
    from scipy.stats import f as fisher

    ranks = rank_table(scores)
    pairs, count = ranks.shape
    means, methods = ranks.mean(axis=0), tuple(scores)
    df = (count - 1, (count - 1) * (pairs - 1))
    result = Friedman(methods, pairs, tuple(means.tolist()), df)
    # Between over total sum of squares of the ranks is the statistic with its correction for ties.
    total = float(np.square(ranks - (count + 1) / 2).sum())
    if count < 2 or not total:
        return Friedman(methods, pairs, result.mean_ranks, df, reason="all methods tie on every pair")
    agreement = float(pairs * np.square(means - (count + 1) / 2).sum()) / total
    chi2 = agreement * pairs * (count - 1)
    f, p_f, reason = math.inf, None, "all pairs rank alike"
    if agreement < 1 - 1e-12:
        f, reason = (pairs - 1) * agreement / (1 - agreement), ""
        p_f = float(fisher.sf(f, *df)) if pairs > 1 else None
    p = float(chi_square.sf(chi2, count - 1))
    return Friedman(methods, pairs, result.mean_ranks, df, chi2, p, agreement, f, p_f, reason)


def nemenyi_q(methods: int, alpha: float = 0.05) -> float:
    """Return the studentized range quantile of k groups and infinite df, over sqrt(2)."""
    return studentized_range(methods, math.inf, alpha) / math.sqrt(2)


def critical_difference(methods: int, pairs: int, alpha: float = 0.05) -> float:
    """Return by how many mean ranks two methods must differ, q sqrt(k (k + 1) / (6 N)).

    Source:
        Section 4: of a possible range k - 1; draw it only from 10 pairs on.
    """
    return nemenyi_q(methods, alpha) * math.sqrt(methods * (methods + 1) / (6 * pairs))


def nemenyi_p(scores: Mapping[str, Sequence[float]]) -> Vector:
    """Return Nemenyi's p of every pair of methods, (k, k), ones on the diagonal."""
    from scipy.stats import studentized_range as distribution

    ranks = rank_table(scores)
    pairs, count = ranks.shape
    means = ranks.mean(axis=0)
    rows, columns = np.triu_indices(count, 1)
    distance = np.abs(means[rows] - means[columns]) * math.sqrt(2) / math.sqrt(count * (count + 1) / (6 * pairs))
    p = np.eye(count)
    p[rows, columns] = p[columns, rows] = distribution.sf(distance, count, np.inf)
    return p


def borda(scores: Mapping[str, Sequence[float]]) -> Borda:
    """Return mean ranks, points and places of methods with complete rows.

    Source:
        Section 4: a display order only.
    """
    from scipy.stats import rankdata

    ranks = rank_table(scores)
    points = (ranks.shape[1] - ranks).sum(axis=0)
    place = rankdata(-points, method="min").astype(int)
    return Borda(tuple(scores), tuple(ranks.mean(axis=0).tolist()), tuple(points.tolist()), tuple(place.tolist()))
