"""Sign-flip and Wilcoxon: exact against brute force and scipy, and their floors."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import permutation_test
from scipy.stats import wilcoxon as scipy_wilcoxon

from kdbench.stats import attainable, holm, pairwise_wilcoxon, sign_flip, signs, stratified_sign_flip, wilcoxon
from kdbench.stats.signs import share_at_least


def test_floors_of_the_table() -> None:
    assert [attainable(n).family_two_sided for n in range(3, 11)] == [0, 0, 0, 1, 3, 6, 12, 25]
    assert [attainable(n).family_one_sided for n in range(3, 11)] == [0, 0, 1, 3, 6, 12, 25, 51]
    assert attainable(5).two_sided == 0.0625
    with pytest.raises(ValueError, match=r"n 0, alpha 0.05 - n >= 1"):
        attainable(0)


def test_all_positive_is_at_the_floor() -> None:
    for test in (sign_flip([0.3, 0.1, 0.2, 0.5, 0.4]), sign_flip([-0.3, -0.1, -0.2, -0.5, -0.4])):
        assert (test.p_two_sided, test.floor, test.at_floor) == (0.0625, 0.0625, True)
    assert not sign_flip([0.3, 0.1, -0.2, 0.5, 0.4]).at_floor


def brute(parts: list[list[float]]) -> tuple[float, float]:
    values = [round(v * 100) for part in parts for v in part]
    weights = [1 / len(part) for part in parts for _ in part]
    observed = sum(v * w for v, w in zip(values, weights, strict=True))
    sums = [
        sum(s * v * w for s, v, w in zip(signs, values, weights, strict=True))
        for signs in product((-1, 1), repeat=len(values))
    ]
    both = sum(abs(s) >= abs(observed) - 1e-9 for s in sums)
    return both / len(sums), sum(s >= observed - 1e-9 for s in sums) / len(sums)


def test_against_brute_force() -> None:
    random = np.random.default_rng(2)
    for sizes in ((4,), (9,), (3, 5), (2, 3, 4), (1, 6)):
        parts = [random.normal(0.1, 0.3, n).round(2).tolist() for n in sizes]
        found = stratified_sign_flip(parts)
        assert (found.p_two_sided, found.p_greater) == pytest.approx(brute(parts))
        assert found.exact


def test_against_scipy() -> None:
    d = np.random.default_rng(4).normal(0.1, 0.3, 11).round(2)
    theirs = permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(d).p_two_sided == pytest.approx(theirs.pvalue)


def test_three_ways_of_counting_agree() -> None:
    random = np.random.default_rng(6)
    d = random.integers(-40, 60, 45) / 100
    counted = sign_flip(d)  # more than 40: counts sums
    weights = np.abs(np.rint(d * 100)).astype(np.int64)
    bound = int(np.rint(d * 100).sum())
    drawn, exact = share_at_least(weights * 10**7 + 1, bound * 10**7)  # too wide to count: draws
    assert counted.exact
    assert not exact
    assert drawn == pytest.approx(counted.p_greater, abs=0.008)
    shorter = d[:24]  # halves
    assert sign_flip(np.concatenate((shorter, np.zeros(30)))).p_two_sided == sign_flip(shorter).p_two_sided
    halves = share_at_least(weights[:30], 300)[0]
    padded = np.concatenate((weights[:30], [10**6] * 11))  # eleven that must all be positive, 2^-11
    assert share_at_least(padded, 300 + 11 * 10**6)[0] == pytest.approx(halves / 2**11)


@pytest.mark.parametrize("count", [1, 2, 45, 63, 64, 70, 520])
def test_all_ways_of_adding_up_counts_agree(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "HALVES", 0)  # nothing is enumerated
    weights = np.random.default_rng(count).integers(1, 50 if count < 100 else 4, count)
    weights[0] = 1  # no common divisor
    total = int(weights.sum())
    bounds = [-total - 9, -total, 1 - total, -7, 0, 13, total // 3, total, total + 1, total + 9]
    expected = [_patterns(weights.tolist(), bound) / 2**count for bound in bounds]
    for name in ("", "LONGEST", "KEPT"):  # as whole numbers, as floats that are kept, and as those that are not
        if name:
            monkeypatch.setattr(signs, name, 0)
        found = [share_at_least(weights, bound) for bound in bounds]
        np.testing.assert_allclose([share for share, _ in found], expected, rtol=1e-12)
        assert all(exact for _, exact in found)
        assert found[0][0] == pytest.approx(1)
        assert (found[7][0], found[8][0], found[9][0]) == (2.0**-count, 0.0, 0.0)


@pytest.mark.parametrize("kept", [0, 10**9])
def test_counts_of_long_weights_are_not_kept(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "KEPT", kept)
    signs._kept_halves.cache_clear()
    share_at_least(np.arange(900, 950), 4000)
    assert signs._kept_halves.cache_info().currsize == bool(kept)


def test_a_bound_that_no_float_holds() -> None:
    assert share_at_least(np.array([2**53 + 1, 2]), 2**53 + 3) == (0.25, True)


def test_pairs_of_so_many_unlike_sizes_that_no_multiple_fits() -> None:
    draws = np.random.default_rng(4)
    sizes = [43, 41, 37, 31, 29, 27, 25, 23, 19, 17, 13, 11, 7]
    parts = [np.round(draws.normal(0.05, 0.4, size), 2) for size in sizes]
    found = stratified_sign_flip(parts)
    flips = [draws.integers(0, 2, (9999, len(part))) * 2 - 1 for part in parts]
    means = np.mean([flip @ part / len(part) for flip, part in zip(flips, parts, strict=True)], axis=0)
    share = np.mean(np.abs(means) >= abs(found.statistic))
    assert not found.exact
    assert found.p_two_sided == pytest.approx(share, abs=0.02)
    assert stratified_sign_flip([[1.0] * size for size in range(1, 60)]).p_two_sided < 1e-4
    assert stratified_sign_flip([[0.0] * size for size in range(1, 60)]).p_two_sided == 1.0


def test_what_rounding_moves_apart_is_a_tie_still(monkeypatch: pytest.MonkeyPatch) -> None:
    tied = [[-0.1, -0.1, 0.2], [0.3, 0.4]]  # as large with the first three turned
    expected = stratified_sign_flip(tied)
    assert expected.p_greater == 5 / 32
    monkeypatch.setattr(signs, "EXACT", 0.0)
    assert stratified_sign_flip(tied) == expected


def _patterns(weights: list[int], bound: int) -> int:
    """Return how many sign patterns have a sum of at least the bound, in whole numbers."""
    counts = {0: 1}
    for weight in weights:
        after: dict[int, int] = {}
        for value, number in counts.items():
            for moved in (value - weight, value + weight):
                after[moved] = after.get(moved, 0) + number
        counts = after
    return sum(number for value, number in counts.items() if value >= bound)


def test_signs_do_not_ask_for_order() -> None:
    d = [0.3, -0.1, 0.2, 0.55, 0.0, 0.2]
    assert sign_flip(d) == sign_flip(d[::-1])
    assert wilcoxon(d) == wilcoxon(d[::-1])
    assert wilcoxon(d).p_two_sided == wilcoxon([-v for v in d]).p_two_sided


def test_float_noise_moves_nothing() -> None:
    noisy = [73.1 - 72.8, 72.4 - 72.1, 72.1 - 72.4, 70.2 - 70.0]
    assert wilcoxon(noisy) == wilcoxon([0.3, 0.3, -0.3, 0.2])
    assert sign_flip(noisy) == sign_flip([0.3, 0.3, -0.3, 0.2])


def test_zeros() -> None:
    assert sign_flip([0.0, 0.0]).p_two_sided == 1.0
    for zeros in ("wilcox", "pratt", "zsplit"):
        nothing = wilcoxon([0.0, 0.0, 0.0], zeros)
        assert (nothing.p_two_sided, nothing.n, nothing.zeros, nothing.floor) == (1.0, 3, 3, 1.0)
    assert wilcoxon([0.1, 0.0, 0.2, 0.3]).floor == 0.25


@pytest.mark.parametrize("zeros", ["wilcox", "pratt", "zsplit"])
@pytest.mark.parametrize("n", [3, 4, 7, 12])
def test_wilcoxon_with_ties_and_zeros(zeros: str, n: int) -> None:
    from scipy.stats import PermutationMethod

    d = np.random.default_rng(n).integers(-3, 5, n) / 10
    d[0] = 0.2
    ours = wilcoxon(d, zeros)  # type: ignore[arg-type]
    theirs = scipy_wilcoxon(d, zero_method=zeros, method=PermutationMethod(n_resamples=np.inf))
    assert ours.p_two_sided == pytest.approx(theirs.pvalue)
    assert ours.statistic == pytest.approx(theirs.statistic)


def test_wilcoxon_without_ties_is_the_table() -> None:
    d = np.random.default_rng(9).normal(0.2, 1, 45)
    for alternative, name in (("two-sided", "p_two_sided"), ("greater", "p_greater")):
        theirs = scipy_wilcoxon(d.round(6), method="exact", alternative=alternative)
        assert getattr(wilcoxon(d), name) == pytest.approx(theirs.pvalue)


def test_pairwise() -> None:
    random = np.random.default_rng(1)
    scores = {name: (70 + i / 2 + random.normal(0, 0.3, 9)).round(2).tolist() for i, name in enumerate("abcd")}
    found = pairwise_wilcoxon(scores)
    assert found.names == tuple(combinations("abcd", 2))
    assert found.p_holm == pytest.approx(holm(found.p))
    for (a, b), p in zip(found.names, found.p, strict=True):
        assert p == wilcoxon(np.array(scores[a]) - np.array(scores[b])).p_two_sided
    pool = {name: scores[name] for name in "ab"}
    assert pairwise_wilcoxon(pool).p == found.p[:1]  # no third method matters


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="differences - value nan in position 1"):
        sign_flip([0.1, float("nan")])
    with pytest.raises(ValueError, match="pair 1 - value inf"):
        stratified_sign_flip([[0.1], [float("inf")]])
    with pytest.raises(ValueError, match="pair 1 - no difference"):
        stratified_sign_flip([[0.1], []])
    with pytest.raises(ValueError, match="there are none"):
        wilcoxon([])
