"""Test-set noise and practical equivalence."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import t as student_t

from kdbench.stats import (
    bayes_signed_rank,
    crossed_error,
    crossed_error_over_pairs,
    disagreement_se,
    mcnemar,
    t_posterior,
    tost,
    wilson,
    within_image_noise,
)

Load = Callable[[str], ModuleType]
D = [0.42, 0.18, 0.55, 0.31, 0.61]


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (7352, 10000)])
def test_wilson_against_statsmodels(oracle: Load, k: int, n: int) -> None:
    theirs = oracle("statsmodels.stats.proportion").proportion_confint(k, n, method="wilson", alpha=0.1)
    ours = wilson(k, n, 0.9)
    assert (ours.interval.low, ours.interval.high) == pytest.approx([100 * end for end in theirs], abs=1e-9)
    assert 0 <= ours.interval.low <= ours.accuracy <= ours.interval.high <= 100


def test_level_errors_of_the_table() -> None:
    assert [round(wilson(k, 10000).se, 2) for k in (7000, 7500, 8000, 9500)] == [0.46, 0.43, 0.40, 0.22]
    assert round(disagreement_se(0.2, 10000), 2) == 0.45


@pytest.mark.parametrize(("b", "c"), [(12, 5), (5, 12), (0, 3), (7, 7)])
def test_mcnemar_against_statsmodels(oracle: Load, b: int, c: int) -> None:
    library = oracle("statsmodels.stats.contingency_tables").mcnemar
    table, ours = [[50, b], [c, 30]], mcnemar(b, c, 100)
    assert ours.p_exact == pytest.approx(library(table, exact=True).pvalue)
    plain = library(table, exact=False, correction=False)
    assert (ours.chi2, ours.p_chi2) == pytest.approx((plain.statistic, plain.pvalue))
    if b != c:
        corrected = library(table, exact=False, correction=True)
        assert (ours.chi2_corrected, ours.p_corrected) == pytest.approx((corrected.statistic, corrected.pvalue))
    assert ours.difference == b - c


def test_mcnemar_without_a_disagreement() -> None:
    same = mcnemar(0, 0, 50)
    assert (same.p_exact, same.chi2, same.p_chi2, same.difference, same.se) == (1.0, None, None, 0.0, 0.0)
    assert mcnemar(3, 1).difference is None


@pytest.mark.parametrize("counts", [(-1, 2, 10), (6, 6, 10), (1, 1, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"McNemar - counts .* 0 <= b"):
        mcnemar(*counts)
    with pytest.raises(ValueError, match=r"accuracy - 11 of 10 images"):
        wilson(11, 10)
    with pytest.raises(ValueError, match=r"disagreement - 1.5"):
        disagreement_se(1.5, 10)


def test_crossed_error_by_hand() -> None:
    # Mean .25, row means .5 and 0, column means 1 and -.5.
    found = crossed_error([[1, 0], [1, -1]])
    assert found.mean == 0.25
    assert found.ms_seed == pytest.approx(2 * (0.25**2 + 0.25**2))
    assert found.ms_image == pytest.approx(2 * (0.75**2 + 0.75**2))
    assert found.ms_residual == pytest.approx(4 * 0.25**2)
    assert found.se_crossed == pytest.approx(math.sqrt((0.25 + 2.25 - 0.25) / 4))


def test_crossed_error_is_the_errors_of_the_means() -> None:
    random = np.random.default_rng(8)
    values = random.integers(-1, 2, (5, 40))
    found = crossed_error(values)
    seeds, images = values.mean(axis=1), values.mean(axis=0)
    assert found.se_seeds == pytest.approx(np.std(seeds, ddof=1) / math.sqrt(5))
    assert found.se_images == pytest.approx(np.std(images, ddof=1) / math.sqrt(40))
    assert found.se_crossed >= max(found.se_seeds, found.se_images)
    turned = crossed_error(values[::-1, ::-1])
    assert turned.se_crossed == pytest.approx(found.se_crossed)
    assert crossed_error(values + 1).se_crossed == pytest.approx(found.se_crossed)


@pytest.mark.parametrize("shape", [(1, 10), (5, 1), (10,)])
def test_crossed_error_needs_two_of_each(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"crossed error - shape .* two of each"):
        crossed_error(np.zeros(shape))


def test_dagger() -> None:
    assert within_image_noise(0.3, 0.2)
    assert within_image_noise(-0.3, 0.2)
    assert not within_image_noise(0.4, 0.2)


def test_tost_against_statsmodels(oracle: Load) -> None:
    library = oracle("statsmodels.stats.weightstats").ttost_paired
    for d in (D, [0.02, -0.05, 0.04, 0.01], [-0.3, -0.1, -0.25]):
        p = library(np.array(d), np.zeros(len(d)), -0.2, 0.2)[0]
        found = tost(d, 0.2)
        assert found.p == pytest.approx(p)
        assert found.equal == (p < 0.05)
    assert tost([0.02, -0.05, 0.04, 0.01]).equal
    assert tost([-0.1, 0.1, -0.05, 0.05]).p is not None  # a mean of exactly zero


def test_equivalence_needs_a_spread_and_a_rope() -> None:
    assert (tost([0.1, 0.1]).equal, tost([0.1, 0.1]).reason) == (None, "zero variance")
    assert tost([0.1]).reason == "one seed"
    assert t_posterior([0.1, 0.1]).reason == "zero variance"
    assert t_posterior([0.1]).inside is None
    with pytest.raises(ValueError, match=r"rope - 0 - must be > 0"):
        tost(D, 0)
    with pytest.raises(ValueError, match=r"rope - -1 - must be >= 0"):
        bayes_signed_rank(D, -1)
    with pytest.raises(ValueError, match=r"value nan"):
        t_posterior([0.1, math.nan])


def test_t_posterior_by_formula() -> None:
    found = t_posterior(D, 0.2)
    scale = np.std(D, ddof=1) / math.sqrt(5)
    assert found.above == pytest.approx(student_t.sf((0.2 - np.mean(D)) / scale, 4))
    assert found.below is not None
    assert found.inside is not None
    assert found.above is not None
    assert found.below + found.inside + found.above == pytest.approx(1)
    wide = t_posterior(D, 5.0)
    assert wide.inside == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("rope", [0.2, 0.0])
def test_bayes_signed_rank_against_baycomp(oracle: Load, rope: float) -> None:
    library = oracle("baycomp").SignedRankTest
    random = np.random.default_rng(12)
    x = random.normal(70, 1, 7).round(2)
    y = (x + random.normal(0.2, 0.3, 7)).round(2)
    theirs = library.probs(x, y, rope=rope, nsamples=10_000, random_state=3)
    ours = bayes_signed_rank(y - x, rope, digits=None)
    shares = (ours.below, ours.inside, ours.above) if rope else (ours.below, ours.above)
    assert shares == pytest.approx(theirs, abs=0.02)  # four standard errors


def test_bayes_signed_rank_is_symmetric_and_sure_of_the_obvious() -> None:
    d = [0.5, 0.3, -0.1, 0.7, 0.25, 0.6]
    ours, turned = bayes_signed_rank(d), bayes_signed_rank([-v for v in d])
    assert (ours.above, ours.below) == pytest.approx((turned.below, turned.above), abs=0.01)
    assert bayes_signed_rank(d) == bayes_signed_rank(d[::-1])
    sure = bayes_signed_rank([1.0, 1.0], 0.2)  # two pairs that agree already give .96: hence six are required
    assert sure.above == pytest.approx(0.96, abs=0.01)
    assert bayes_signed_rank([0.0] * 6).inside == 1.0
    without = bayes_signed_rank([0.0] * 5, rope=0)  # ties throughout: half to each side
    assert (without.below, without.inside, without.above) == (0.5, 0.0, 0.5)


def test_errors_of_pairs_add_up_on_one_dataset_alone() -> None:
    assert crossed_error_over_pairs({"a": [0.3, 0.5], "b": [0.6]}) == pytest.approx((0.8**2 + 0.6**2) ** 0.5 / 3)
    assert crossed_error_over_pairs({"a": [0.3, 0.3]}) == pytest.approx(0.3)  # the same images twice tell no more
    assert crossed_error_over_pairs({"a": [0.3], "b": [0.3]}) == pytest.approx(0.3 / 2**0.5)
    with pytest.raises(ValueError, match="no pair"):
        crossed_error_over_pairs({})
