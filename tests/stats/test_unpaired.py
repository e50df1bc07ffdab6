"""Samples without common seeds, and what describes one sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, ttest_ind, ttest_rel

from kdbench.stats import (
    cliffs_delta,
    describe,
    hedges_g,
    mean_of_last,
    mean_std,
    optimism,
    paired_difference,
    paired_t,
    seed_correlation,
    stochastic_order,
    t_interval,
    unpaired_improvement,
    welch_t,
)

A = [70.9, 71.2, 70.4, 71.0, 70.7]
B = [70.6, 71.1, 70.6]


def test_welch_against_scipy_and_its_degenerate_cases() -> None:
    ours, theirs = welch_t(A, B), ttest_ind(A, B, equal_var=False)
    assert (ours.t, ours.df, ours.p) == pytest.approx((theirs.statistic, theirs.df, theirs.pvalue))
    assert (welch_t([1.0, 1.0], [2.0, 2.0]).p, welch_t([1.0, 1.0], [2.0, 2.0]).reason) == (None, "zero variance")
    assert welch_t([1.0], B).reason == "one value"
    with pytest.raises(ValueError, match="second - value nan in position 1"):
        welch_t(A, [1.0, math.nan])


def test_effect_sizes_by_hand() -> None:
    # Means 2 and 5, pooled variance (2 + 2) / 4 = 1, df 4: -3 (1 - 3 / 15).
    assert hedges_g([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(-3 * 0.8)
    assert hedges_g([1.0, 1.0], [2.0, 2.0]) is None
    assert hedges_g([1.0], [2.0, 3.0]) is None
    assert cliffs_delta([1.0, 2.0], [0.0, 2.0]) == 0.25  # one above and one below, one above and one tie
    assert cliffs_delta(A, B) == pytest.approx(-cliffs_delta(B, A))


def test_unpaired_improvement_is_mann_whitney() -> None:
    assert unpaired_improvement(A, B) == pytest.approx(mannwhitneyu(A, B).statistic / 15)
    two = unpaired_improvement(np.transpose([A, A]), np.transpose([B, A[:3]]))
    assert two == pytest.approx((mannwhitneyu(A, B).statistic + mannwhitneyu(A, A[:3]).statistic) / 30)
    with pytest.raises(ValueError, match="second - 1 pairs - must be 2"):
        unpaired_improvement(np.transpose([A, A]), np.transpose([B]))


def test_stochastic_order() -> None:
    above, below = stochastic_order([5.0, 6.0, 7.0], [1.0, 2.0]), stochastic_order([1.0, 2.0], [5.0, 6.0, 7.0])
    assert (above.violation_ratio, above.eps_min) == (0.0, 0.0)
    assert (below.violation_ratio, below.eps_min) == (1.0, 1.0)
    assert stochastic_order(A, A).violation_ratio == 0.5
    # Quantiles 0, 2 against 1, 1 (a - b = -1, 1): half of the squared distance speaks against a.
    assert stochastic_order([0.0, 2.0], [1.0, 1.0]).violation_ratio == pytest.approx(0.5)
    assert stochastic_order(A, B) == stochastic_order(A[::-1], B[::-1])


def test_describe() -> None:
    found = describe(A)
    assert (found.n, found.median, found.low, found.high) == (5, 70.9, 70.4, 71.2)
    assert found.sem == pytest.approx(np.std(A, ddof=1) / math.sqrt(5))
    assert found.interval == t_interval(A)
    assert describe(A[::-1]) == found
    one = describe([70.0])
    assert (one.std, one.sem, one.interval, one.mean) == (None, None, None, 70.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    for call in (mean_std, describe, t_interval, paired_t):
        with pytest.raises(ValueError, match=r"values - value (nan|inf) in position 1 - every value must be a finite"):
            call([70.0, wrong])  # type: ignore[operator]
    with pytest.raises(ValueError, match="every value must be a finite"):
        paired_difference({0: 70.0, 1: wrong}, {0: 69.0, 1: 70.0})


def test_last_epochs() -> None:
    curve = [10.0, 60.0, 72.0, 70.0, 71.0, 69.0]
    assert mean_of_last(curve, 3) == 70.0
    assert optimism(curve) == 3.0
    with pytest.raises(ValueError, match=r"7 last epochs - must lie in 1\.\.6"):
        mean_of_last(curve, 7)


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_one_sided_paired_t_against_scipy(alternative: str) -> None:
    d = [0.4, 0.1, -0.2, 0.5]
    ours = paired_t(d, 0.9, alternative)  # type: ignore[arg-type]
    theirs = ttest_rel(d, np.zeros(4), alternative=alternative)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval is not None
    assert (ours.interval.low, ours.interval.high) == pytest.approx(tuple(theirs.confidence_interval(0.9)))


def test_shifting_both_arms_changes_nothing() -> None:
    first, second = dict(enumerate(A)), dict(enumerate(A[::-1]))
    moved = [{s: v + 3.7 for s, v in arm.items()} for arm in (first, second)]
    assert paired_difference(*moved) == paired_difference(first, second)
    turned = paired_difference(second, first)
    assert turned.t == pytest.approx(-(paired_difference(first, second).t or 0), abs=1e-12)


def test_dz() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.0, 1: 0.0, 2: 1.0})  # 1, 2, 3
    assert found.dz == pytest.approx(2.0)
    assert paired_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0}).dz is None


def test_seed_correlation() -> None:
    first = {0: 70.0, 1: 71.0, 2: 73.0, 9: 1.0}
    assert seed_correlation(first, {2: 63.0, 1: 61.0, 0: 60.0, 8: 5.0}) == pytest.approx(1.0)
    assert seed_correlation(first, {s: -v for s, v in first.items()}) == pytest.approx(-1.0)
    assert seed_correlation(first, dict.fromkeys(first, 70.0)) is None
    assert seed_correlation(first, {0: 70.0, 1: 71.0}) is None
