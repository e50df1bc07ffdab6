"""Blocked analysis, Tukey's set with its guard, and pooled p-values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import f as fisher
from scipy.stats import ttest_rel

from kdbench.stats import (
    blocked_anova,
    bold_set,
    complete_blocks,
    holm,
    honest_difference,
    paired_p_of_all,
    pooled_p,
    tukey_p,
)
from kdbench.stats.bold import HOLM_ALL, TUKEY

Table = dict[str, dict[int, float]]


def table(gains: list[float], seeds: int = 5, std: float = 0.2, start: int = 3) -> Table:
    random = np.random.default_rng(start)
    block = random.normal(0, 0.3, seeds)
    return {
        f"m{i}": {s: float(70 + gain + block[s] + random.normal(0, std)) for s in range(seeds)}
        for i, gain in enumerate(gains)
    }


def test_by_hand() -> None:
    # Rows 1 3 / 2 6: means 2, 4, grand 3, column means 1.5, 4.5; residuals +-.5, so MSE = 4 * .25 / 1 = 1.
    anova = blocked_anova(complete_blocks({"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 6.0}}))
    assert anova.means.tolist() == [2.0, 4.0]
    assert (anova.mse, anova.df) == (1.0, 1)
    assert anova.f == pytest.approx(2 * (1 + 1) / 1 / 1)
    assert anova.p == pytest.approx(fisher.sf(4, 1, 1))
    assert anova.residual_std.tolist() == pytest.approx([0.5**0.5] * 2)
    assert anova.guard_ratio == pytest.approx(1.0)


def test_two_methods_are_the_paired_t_test() -> None:
    rows = table([0.0, 0.3], 7)
    blocks = complete_blocks(rows)
    paired = ttest_rel(*blocks.values)
    anova = blocked_anova(blocks)
    assert anova.f == pytest.approx(paired.statistic**2)
    assert tukey_p(anova)[0, 1] == pytest.approx(paired.pvalue, abs=1e-7)
    assert pooled_p(anova, "m0")["m1"] == pytest.approx(paired.pvalue)
    assert paired_p_of_all(blocks.values)[0, 1] == pytest.approx(paired.pvalue, rel=1e-4)  # rounded differences


def test_against_statsmodels(oracle: Callable[[str], ModuleType]) -> None:
    anova_rm = oracle("statsmodels.stats.anova").AnovaRM
    pandas = oracle("pandas")
    rows = table([0.0, 0.2, 0.4, 0.5], 6)
    long = pandas.DataFrame([(m, s, v) for m, runs in rows.items() for s, v in runs.items()], columns=list("msv"))
    theirs = anova_rm(long, "v", "s", within=["m"]).fit().anova_table
    ours = blocked_anova(complete_blocks(rows))
    assert ours.f == pytest.approx(float(theirs["F Value"].iloc[0]))
    assert ours.p == pytest.approx(float(theirs["Pr > F"].iloc[0]))
    assert ours.df == int(theirs["Den DF"].iloc[0])


def test_what_does_not_matter() -> None:
    rows = table([0.0, 0.2, 0.6])
    turned = {name: dict(reversed(runs.items())) for name, runs in reversed(rows.items())}
    moved = {name: {s: v + 5 * s - 17 for s, v in runs.items()} for name, runs in rows.items()}  # a seed is a block
    for other in (turned, moved):
        first, second = bold_set(rows), bold_set(other)
        assert first.bold == second.bold
        assert first.hsd == pytest.approx(second.hsd)
        assert first.guard_ratio == pytest.approx(second.guard_ratio)


def test_bold_by_tukey_agrees_with_its_p_values() -> None:
    rows = table([0.0, 0.3, 0.45, 0.5, 0.1], 8)
    found, anova = bold_set(rows), blocked_anova(complete_blocks(rows))
    p = tukey_p(anova)
    best = anova.methods.index(str(found.best))
    assert found.rule == TUKEY
    assert set(found.bold) == {m for i, m in enumerate(anova.methods) if p[best, i] >= 0.05}
    assert found.bold[0] == found.best
    assert found.hsd == pytest.approx(honest_difference(anova))
    assert 1 < len(found.bold) < 5


def test_one_clear_winner() -> None:
    assert bold_set(table([0.0, 0.0, 2.0])).bold == ("m2",)


def test_guard_turns_to_holm_over_all_pairs() -> None:
    rows = table([0.0, 0.0, 0.0, 0.05, 1.5], 8, std=0.05)
    random = np.random.default_rng(5)
    rows["m0"] = {s: v + float(random.normal(0, 1.0)) for s, v in rows["m0"].items()}
    found = bold_set(rows)
    assert found.guard_ratio is not None
    assert found.guard_ratio > 2.5
    assert (found.rule, found.hsd) == (HOLM_ALL, None)
    names = list(rows)
    arms = {name: list(runs.values()) for name, runs in rows.items()}
    raw = {(a, b): float(ttest_rel(arms[a], arms[b]).pvalue) for a, b in combinations(names, 2)}
    adjusted = dict(zip(raw, holm(list(raw.values())), strict=True))
    sizes = []
    for alpha in (1e-6, 1e-4, 0.05, 0.5):
        worse = {m for pair, p in adjusted.items() if "m4" in pair and p is not None and p < alpha for m in pair}
        bold = bold_set(rows, alpha=alpha).bold
        assert set(bold) == set(names) - (worse - {"m4"})
        sizes.append(len(bold))
    assert sizes[0] > sizes[-1]
    assert set(pooled_p(blocked_anova(complete_blocks(rows)), "m1").values()) == {None}


def test_incomplete_seeds_are_dropped_for_all() -> None:
    rows = table([0.0, 0.1, 0.2], 6)
    del rows["m1"][2]
    blocks = complete_blocks(rows)
    assert (blocks.seeds, blocks.dropped_seeds) == ((0, 1, 3, 4, 5), (2,))
    assert bold_set(rows).n == 5
    silent = bold_set(rows, planned=6)
    assert (silent.best, silent.bold, silent.reason) == (None, (), "5 of 6 seeds that all methods have")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (table([0.0, 1.0], 3), "3 of 5 seeds that all methods have"),
        (table([0.0, 1.0], 1), "1 of 5 seeds that all methods have"),
        ({"a": {0: 1.0}, "b": {1: 1.0}}, "0 of 5 seeds that all methods have"),
        (table([0.0]), "fewer than two methods to compare"),
        ({}, "fewer than two methods to compare"),
        ({"a": dict.fromkeys(range(5), 70.0), "b": dict.fromkeys(range(5), 70.3)}, "zero variance"),
    ],
)
def test_nothing_is_bold_and_why(rows: Table, reason: str) -> None:
    found = bold_set(rows)
    assert (found.best, found.bold, found.reason) == (None, (), reason)


def test_float_noise_is_no_variance() -> None:
    rows = {"a": {s: 70.1 + 0.1 * s for s in range(5)}, "b": {s: 70.4 + 0.1 * s for s in range(5)}}
    anova = blocked_anova(complete_blocks(rows))
    assert (anova.mse, anova.f, anova.reason) == (0.0, None, "zero variance")
    assert np.isnan(tukey_p(anova)).all()
    assert pooled_p(anova, "a") == {"b": None}


def test_an_unstable_method_is_neither_bold_nor_in_the_error() -> None:
    rows = table([0.0, 0.3, 0.4])
    clean = bold_set(rows)
    rows["broken"] = {s: 75.0 if s else 1.0 for s in range(5)}
    found = bold_set(rows, unstable={"broken"})
    assert (found.bold, found.hsd, found.left_out) == (clean.bold, clean.hsd, ("broken",))


def test_bad_input_has_one_message() -> None:
    rows = table([0.0, 0.3])
    rows["m1"][3] = float("nan")
    with pytest.raises(ValueError, match="accuracies - value nan in position 1, 3 - every value must be a finite"):
        bold_set(rows)
    with pytest.raises(ValueError, match="1 methods and 5 common seeds - two of each"):
        blocked_anova(complete_blocks(table([0.0])))


def test_pooled_p_by_formula() -> None:
    from scipy.stats import t

    rows = table([0.0, 0.3, 0.9], 6)
    anova = blocked_anova(complete_blocks(rows))
    raw = [2 * t.sf(abs(anova.means[i] - anova.means[0]) / (2 * anova.mse / 6) ** 0.5, 10) for i in (1, 2)]
    found = pooled_p(anova, "m0")
    assert found["m2"] == pytest.approx(min(1, 2 * raw[1]))
    assert found["m1"] == pytest.approx(max(raw[0], 2 * raw[1]))
