"""Planning, and aggregates of gains."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from kdbench.stats import (
    bootstrap_mean,
    gap_closed,
    iqm,
    minimum_detectable,
    paired_improvement,
    power,
    seeds_needed,
    standardized_mde,
    stratified_bootstrap,
)

D = [0.42, 0.18, 0.55, 0.31, -0.06, 0.27, 0.61, 0.12, 0.38, 0.24]


def test_power_against_statsmodels(oracle: Callable[[str], ModuleType]) -> None:
    library = oracle("statsmodels.stats.power").TTestPower()
    for gain, n, alpha in ((0.3, 5, 0.05), (1.5, 8, 0.01), (0.2, 40, 0.05 / 9), (0.0, 6, 0.05)):
        assert power(gain, 1.0, n, alpha) == pytest.approx(library.power(gain, n, alpha), abs=1e-7)


def test_seeds_of_the_table() -> None:
    columns = ((0.2, 1), (0.2, 9), (0.3, 1), (0.3, 9), (0.3, 45), (0.4, 9))
    rows = {
        0.2: [10, 17, 20, 34, 44, 57],
        0.3: [6, 10, 10, 17, 23, 28],
        0.5: [4, 6, 6, 9, 12, 13],
        1.0: [3, 4, 3, 5, 7, 6],
    }
    assert {gain: [seeds_needed(gain, std, family=m) for std, m in columns] for gain in rows} == rows


def test_detectable_gains_of_the_table() -> None:
    rows = {1: [3.26, 2.13, 1.68, 1.43, 1.27, 1.16, 1.00], 9: [9.82, 4.54, 3.07, 2.40, 2.02, 1.77, 1.46]}
    found = {m: [round(standardized_mde(n, 0.05, m), 2) for n in (3, 4, 5, 6, 7, 8, 10)] for m in rows}
    assert found == rows
    assert minimum_detectable(5, 0.3, family=9) == pytest.approx(0.3 * standardized_mde(5, 0.05, 9))


def test_what_is_detectable_is_found_and_one_seed_fewer_is_not_enough() -> None:
    assert power(minimum_detectable(7, 0.25, family=4), 0.25, 7, family=4) == pytest.approx(0.8)
    n = seeds_needed(0.17, 0.3, target=0.9)
    assert power(0.17, 0.3, n) >= 0.9 > power(0.17, 0.3, n - 1)


def test_extremes_of_power() -> None:
    assert power(0.0, 0.3, 5) == pytest.approx(0.05)
    assert power(-0.3, 0.3, 5) == power(0.3, 0.3, 5)
    assert power(100.0, 0.01, 5) == pytest.approx(1.0)
    assert seeds_needed(100.0, 0.01) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power(0.3, 0.0, 5), "std 0.0"),
        (lambda: power(0.3, 0.3, 1), "1 seeds - two are the least"),
        (lambda: power(0.3, 0.3, 5, 1.0), "alpha 1.0"),
        (lambda: power(0.3, 0.3, 5, family=0), "family 0"),
        (lambda: seeds_needed(0.0, 0.3), "gain 0 - no number of seeds"),
        (lambda: seeds_needed(1e-6, 0.3), "more than 1000000"),
        (lambda: seeds_needed(0.3, 0.3, target=1.0), "target 1.0"),
        (lambda: power(0.3, float("nan"), 5), "std nan"),
    ],
)
def test_impossible_plans_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_iqm() -> None:
    assert iqm([0.0, 1.0, 2.0, 100.0]) == 1.5
    assert iqm([3.0]) == 3.0
    values = np.random.default_rng(0).normal(size=(5, 7))
    assert iqm(values) == pytest.approx(trim_mean(values, 0.25, axis=None))
    assert iqm(values + 3) == pytest.approx(iqm(values) + 3)
    with pytest.raises(ValueError, match="there are none"):
        iqm([])


def test_paired_improvement_counts_ties_half_and_pairs_alike() -> None:
    assert paired_improvement([[0.1, -0.1, 73.1 - 72.8 - 0.3, 0.2]]) == 0.625
    assert paired_improvement([[0.1, 0.1, 0.1, 0.1], [-0.1]]) == 0.5


def test_gap_closed() -> None:
    assert gap_closed(72.0, 70.0, 74.0) == 0.5
    assert gap_closed(71.0, 70.0, 72.0) == 0.5
    assert gap_closed(72.0, 70.0, 71.99) is None
    assert gap_closed(72.0, 70.0, 60.0) is None
    with pytest.raises(ValueError, match="value nan"):
        gap_closed(float("nan"), 70.0, 74.0)


@pytest.mark.parametrize(("ours", "theirs"), [("percentile", "percentile"), ("bca", "BCa"), ("basic", "basic")])
def test_bootstrap_against_scipy(ours: str, theirs: str) -> None:
    skewed = [0.013, 0.131, 0.052, 0.617, 0.228, 0.109, 0.044, 0.3, 0.843, 0.157]
    for d in (D, skewed):
        library = bootstrap((d,), np.mean, n_resamples=100_000, method=theirs, rng=np.random.default_rng(1))
        interval = getattr(bootstrap_mean(d, resamples=100_000), ours)
        assert (interval.low, interval.high) == pytest.approx(tuple(library.confidence_interval), abs=0.012)


def test_ties_of_resamples_are_no_bias() -> None:
    even = bootstrap_mean([-1.0, -1.0, 0.0, 0.0, 1.0, 1.0], resamples=100_000).bca
    assert even is not None
    assert even.low == pytest.approx(-even.high, abs=1e-9)


def test_bootstrap_of_nothing() -> None:
    flat = bootstrap_mean([73.1 - 72.8, 72.4 - 72.1])
    assert (flat.bca, flat.percentile, flat.basic, flat.reason) == (None, None, None, "zero variance")
    assert bootstrap_mean([0.1]).reason == "one seed"
    assert bootstrap_mean(D) == bootstrap_mean(D[::-1])


def test_stratified_bootstrap() -> None:
    parts = [D, [0.1, 0.2, 0.9]]
    found = stratified_bootstrap(parts)
    # Every resample's variance is the sum over pairs of (n - 1) / n s^2 / n, over P^2.
    error = sum(np.var(part) / len(part) for part in parts) ** 0.5 / 2
    assert (found.mean.high - found.mean.low) / 2 / 1.96 == pytest.approx(error, rel=0.05)
    assert found.mean.low < np.mean([np.mean(part) for part in parts]) < found.mean.high
    assert found.iqm.low <= iqm(np.concatenate(parts)) <= found.iqm.high
    assert stratified_bootstrap([part[::-1] for part in parts]) == found
    flat = stratified_bootstrap([[0.3, 0.3], [0.1, 0.1]], resamples=100)
    assert flat.mean.low == pytest.approx(flat.mean.high) == pytest.approx(0.2)
