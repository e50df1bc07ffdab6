"""What the rules promise on average, by simulation with fixed seeds; bounds are three Monte Carlo standard errors."""

from __future__ import annotations

import math

import numpy as np

from kdbench.stats import bold_set, compare_with_baseline, paired_t, stratified_t, t_interval, with_stars

METHODS, SEEDS = 10, 5


def margin(share: float, runs: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / runs)


def equal_methods(random: np.random.Generator, rho: float = 0.5, std: float = 0.25) -> np.ndarray:
    """Return (methods, seeds) without any true difference; methods correlate by rho over seeds."""
    block = random.normal(0, std * math.sqrt(rho), SEEDS)
    return 70 + block + random.normal(0, std * math.sqrt(1 - rho), (METHODS, SEEDS))


def named(values: np.ndarray) -> dict[str, dict[int, float]]:
    return {f"m{index}": dict(enumerate(row.tolist())) for index, row in enumerate(values)}


def test_stars_are_false_in_at_most_five_percent_of_tables() -> None:
    random, runs = np.random.default_rng(100), 1500
    false = 0
    for _ in range(runs):
        # That boards give these stars, and the bold sets below, is tested in tests/unit/test_simulated_boards.py.
        held = with_stars(compare_with_baseline(named(equal_methods(random)), "m0", planned=SEEDS))
        false += any(comparison.star for comparison in held)
    # Holm is conservative for comparisons that share a baseline, not idle.
    assert 0.01 < false / runs < 0.05 + margin(0.05, runs)


def test_bold_set_misses_a_best_method_in_five_percent_of_tables() -> None:
    random, runs = np.random.default_rng(101), 1500
    missed = 0
    for _ in range(runs):
        values = equal_methods(random)
        found = bold_set(named(values))
        missed += len(found.bold) < METHODS
    assert abs(missed / runs - 0.05) < margin(0.05, runs)


def test_guard_keeps_unequal_variances_in_bounds() -> None:
    random, runs = np.random.default_rng(102), 800
    missed = [0, 0]
    for _ in range(runs):
        values = 70 + random.normal(0, 0.2, (METHODS, SEEDS))
        values[0] = 70 + random.normal(0, 0.75, SEEDS)
        found = bold_set(named(values))
        missed[0] += len(found.bold) < METHODS
        missed[1] += found.hsd is None and len(found.bold) < METHODS
    assert missed[0] / runs < 0.09 + margin(0.09, runs)  # .18 without the guard


def test_t_interval_covers() -> None:
    random, runs = np.random.default_rng(103), 2000
    for n in (3, 5):
        covered = 0
        for _ in range(runs):
            interval = t_interval(random.normal(0.3, 0.3, n).tolist())
            assert interval is not None
            covered += interval.low < 0.3 < interval.high
        assert abs(covered / runs - 0.95) < margin(0.95, runs)


def test_paired_test_keeps_its_level_at_any_correlation() -> None:
    random, runs = np.random.default_rng(104), 2000
    for rho in (0.0, 0.6):
        false = 0
        for _ in range(runs):
            values = equal_methods(random, rho)
            p = paired_t((values[0] - values[1]).tolist()).p
            assert p is not None
            false += p < 0.05
        assert abs(false / runs - 0.05) < margin(0.05, runs)


def test_stratified_test_keeps_its_level_on_fixed_pairs() -> None:
    random, runs = np.random.default_rng(105), 1500
    false = 0
    for _ in range(runs):
        p = stratified_t([random.normal(0, std, 4) for std in (0.1, 0.3, 0.3, 0.6)]).p
        assert p is not None
        false += p < 0.05
    assert false / runs < 0.05 + margin(0.05, runs)
