"""Several pairs: stratified t, ranks, and methods that lack a pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, ttest_1samp, ttest_ind

from kdbench.stats import (
    borda,
    by_seed,
    critical_difference,
    differences_by_pair,
    friedman,
    nemenyi_p,
    nemenyi_q,
    pair_means_t,
    paired_improvement,
    rank_table,
    stratified_t,
)

ONE = [0.42, 0.18, 0.55, 0.31, 0.61]
OTHER = [0.05, -0.22, 0.3]


def test_two_pairs_are_welch_of_one_against_the_other_turned() -> None:
    theirs = ttest_ind(ONE, [-v for v in OTHER], equal_var=False)
    ours = stratified_t([ONE, OTHER])
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.df == pytest.approx(theirs.df)
    assert ours.estimate == pytest.approx((np.mean(ONE) + np.mean(OTHER)) / 2)
    assert ours.interval is not None
    assert ours.interval.high == pytest.approx(theirs.confidence_interval().high / 2)


def test_one_pair_is_the_paired_t_test() -> None:
    ours, theirs = stratified_t([ONE]), ttest_1samp(ONE, 0)
    assert (ours.t, ours.p, ours.df) == pytest.approx((theirs.statistic, theirs.pvalue, 4))


def test_order_of_seeds_changes_no_bit_and_of_pairs_nothing() -> None:
    assert stratified_t([ONE[::-1], OTHER[::-1]]) == stratified_t([ONE, OTHER])
    assert stratified_t([OTHER, ONE]).p == pytest.approx(stratified_t([ONE, OTHER]).p)


def test_pairs_of_unlike_sizes_keep_their_places() -> None:
    random = np.random.default_rng(2)
    parts = [random.normal(pair, 1 + pair, size).round(2) for pair, size in enumerate((5, 3, 5, 2, 9, 3))]
    shares = np.array([part.var(ddof=1) / len(part) for part in parts])
    below = np.array([len(part) - 1 for part in parts])
    found = stratified_t(parts)
    assert found.se == pytest.approx(math.sqrt(shares.sum()) / 6)
    assert found.df == pytest.approx(shares.sum() ** 2 / (shares**2 / below).sum())
    assert paired_improvement(parts) == pytest.approx(np.mean([np.mean(part > 0) for part in parts]))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [([ONE, [0.3]], "one seed"), ([[0.3, 0.3], [0.1, 0.1]], "zero variance"), ([[0.3], [0.1]], "one seed")],
)
def test_no_test_and_why(parts: list[list[float]], reason: str) -> None:
    found = stratified_t(parts)
    assert (found.t, found.df, found.p, found.interval, found.reason) == (None, None, None, None, reason)
    assert found.estimate == pytest.approx(np.mean([np.mean(part) for part in parts]))


def test_a_flat_pair_among_others_adds_no_variance() -> None:
    found = stratified_t([ONE, [73.1 - 72.8, 72.4 - 72.1]])
    assert found.se == pytest.approx(np.std(ONE, ddof=1) / math.sqrt(5) / 2)
    assert found.df == pytest.approx(4)


def test_pairs_at_random_use_one_value_per_pair() -> None:
    parts = [ONE, OTHER, [0.1, 0.2]]
    theirs = ttest_1samp([np.mean(part) for part in parts], 0)
    assert pair_means_t(parts).p == pytest.approx(theirs.pvalue)
    assert pair_means_t([ONE]).reason == "one seed"


def test_differences_by_pair() -> None:
    first = {"p": {0: 71.3, 1: 70.0, 2: 70.0}, "q": {0: 60.0}, "only_first": {0: 1.0}, "apart": {0: 5.0}}
    second = {"q": {0: 59.9}, "p": {2: 69.0, 0: 71.0, 7: 3.0}, "only_second": {0: 1.0}, "apart": {1: 5.0}}
    found = differences_by_pair(first, second)
    assert found.pairs == ("p", "q")
    assert found.values == ((0.3, 1.0), (0.1,))
    assert found.left_out == ("only_first", "apart", "only_second")
    with pytest.raises(ValueError, match="value nan"):
        differences_by_pair({"p": {0: math.nan}}, {"p": {0: 1.0}})


def test_a_seed_that_occurs_twice_is_refused() -> None:
    assert by_seed([(1, 70.0), (0, 71.0)]) == {1: 70.0, 0: 71.0}
    with pytest.raises(ValueError, match="runs of kd - seed 1 occurs twice - each seed may occur once - remove"):
        by_seed([(1, 70.0), (1, 70.0)], "runs of kd")
    with pytest.raises(ValueError, match="value nan in position 0"):
        by_seed([(1, math.nan)])


def random_scores(k: int, n: int, seed: int) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    return {f"m{i}": (70 + i / 4 + random.normal(0, 1, n)).round(0).tolist() for i in range(k)}  # with ties


@pytest.mark.parametrize(("k", "n"), [(3, 4), (5, 11), (8, 20)])
def test_friedman_against_scipy(k: int, n: int) -> None:
    scores = random_scores(k, n, k)
    ours, theirs = friedman(scores), friedmanchisquare(*scores.values())
    assert (ours.chi2, ours.p_chi2) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert ours.chi2 is not None
    assert ours.f == pytest.approx((n - 1) * ours.chi2 / (n * (k - 1) - ours.chi2))
    assert ours.f_df == (k - 1, (k - 1) * (n - 1))


def test_nemenyi_against_scikit_posthocs(oracle: Callable[[str], ModuleType]) -> None:
    library = oracle("scikit_posthocs")
    scores = random_scores(6, 12, 5)
    theirs = np.asarray(library.posthoc_nemenyi_friedman(np.array(list(scores.values())).T))
    assert nemenyi_p(scores) == pytest.approx(theirs, abs=1e-6)


def test_critical_differences_of_the_table() -> None:
    expected = {5: 6.06, 8: 4.79, 10: 4.28, 15: 3.50, 20: 3.03, 30: 2.47}
    assert {n: round(critical_difference(10, n), 2) for n in expected} == expected
    assert nemenyi_q(2) == pytest.approx(1.959964, abs=1e-6)  # two methods: the normal quantile


def test_all_pairs_alike_is_not_p_zero() -> None:
    alike = friedman({"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 2.0], "c": [5.0, 6.0, 7.0]})
    assert (alike.f, alike.p_f, alike.kendall_w, alike.reason) == (math.inf, None, 1.0, "all pairs rank alike")
    assert alike.chi2 == pytest.approx(6.0)


def test_all_methods_tie() -> None:
    tied = friedman({"a": [1.0, 2.0], "b": [1.0, 2.0]})
    assert (tied.chi2, tied.f, tied.reason) == (None, None, "all methods tie on every pair")
    assert tied.mean_ranks == (1.5, 1.5)


def test_ranks_ignore_float_noise_and_shifts() -> None:
    table = rank_table({"a": [0.1 + 0.2, 2.0], "b": [0.3, 1.0]})
    assert table.tolist() == [[1.5, 1.5], [1.0, 2.0]]
    moved = rank_table({"a": [5 + 0.1 + 0.2, 2.0], "b": [5.3, 1.0]})
    assert moved.tolist() == table.tolist()


def test_borda_by_hand() -> None:
    found = borda({"a": [3.0, 1.0], "b": [2.0, 2.0], "c": [1.0, 2.0]})
    assert found.mean_rank == (2.0, 1.75, 2.25)
    assert found.points == (2.0, 2.5, 1.5)
    assert found.place == (2, 1, 3)
    tie = borda({"a": [1.0], "b": [1.0], "c": [0.0]})
    assert tie.place == (1, 1, 3)


def test_a_method_in_one_pair_only_is_refused() -> None:
    with pytest.raises(ValueError, match="a 2, b 1 - each needs one on each pair - leave out"):
        borda({"a": [1.0, 2.0], "b": [1.0]})
    with pytest.raises(ValueError, match="ranks - pairs per method: no method"):
        friedman({})
    with pytest.raises(ValueError, match="scores - value nan"):
        friedman({"a": [1.0, math.nan], "b": [1.0, 2.0]})
