"""Corrections for many comparisons, and the stars of a table."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from kdbench.stats import adjust, compare_with_baseline, holm, with_stars
from kdbench.stats.families import Correction


def test_by_hand() -> None:
    p = [0.04, 0.01, 0.03]  # ascending: .01, .03, .04
    assert holm(p) == pytest.approx((0.06, 0.03, 0.06))
    assert adjust(p, "hochberg") == pytest.approx((0.04, 0.03, 0.04))
    assert adjust(p, "bonferroni") == pytest.approx((0.12, 0.03, 0.09))
    assert adjust(p, "bh") == pytest.approx((0.04, 0.03, 0.04))
    assert holm([]) == ()
    assert holm([0.9, 0.8]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("holm", "holm"), ("hochberg", "simes-hochberg"), ("bonferroni", "bonferroni"), ("bh", "fdr_bh")],
)
def test_against_statsmodels(oracle: Callable[[str], ModuleType], ours: Correction, theirs: str) -> None:
    multipletests = oracle("statsmodels.stats.multitest").multipletests
    random = np.random.default_rng(11)
    for m in (1, 2, 7, 30):
        p = np.round(random.beta(0.5, 2, m), 3)  # with ties
        assert adjust(p.tolist(), ours) == pytest.approx(multipletests(p, method=theirs)[1], abs=1e-12)


@pytest.mark.parametrize("correction", ["holm", "hochberg", "bonferroni", "bh"])
def test_order_does_not_matter_and_none_counts_as_one(correction: Correction) -> None:
    p = [0.2, 0.001, 0.03, 0.03, 0.5]
    turned = adjust(p[::-1], correction)
    assert turned[::-1] == pytest.approx(adjust(p, correction))
    with_none = adjust([0.2, None, 0.001], correction)
    assert with_none[1] is None
    assert (with_none[0], with_none[2]) == pytest.approx(adjust([0.2, 0.001, 1.0], correction)[:2])


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"p-values - .* must lie in"):
        holm([0.5, wrong])


def table(seeds: int = 5) -> dict[str, dict[int, float]]:
    noise = [0.1, -0.1, 0.05, 0.0, -0.05, 0.08, -0.08, 0.02]
    rows = {"plain": 0.0, "better": 1.0, "same": 0.0}
    return {
        name: {s: 70 + s % 3 + gain + noise[(s * 3 + i) % 8] for s in range(seeds)}
        for i, (name, gain) in enumerate(rows.items())
    }


def test_stars() -> None:
    found = {c.method: c for c in with_stars(compare_with_baseline(table(), "plain", planned=5))}
    assert set(found) == {"better", "same"}
    assert [found[name].star for name in ("better", "same")] == [True, False]
    p = found["better"].difference.p
    assert p is not None
    assert found["better"].p_holm == pytest.approx(2 * p)
    assert found["better"].family == 2


def test_a_family_may_span_pairs() -> None:
    once = with_stars(compare_with_baseline(table(), "plain"))[0]
    cells = (*compare_with_baseline(table(), "plain"), *compare_with_baseline(table(7), "plain"))
    wide = with_stars(cells)
    assert {c.family for c in wide} == {4}
    assert once.p_holm is not None
    assert wide[0].p_holm is not None
    assert wide[0].p_holm > once.p_holm


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows["better"].pop(0), "4 of 5 seeds"),
        (lambda rows: rows["better"].update({s: rows["plain"][s] + 0.5 for s in range(5)}), "zero variance"),
        (lambda rows: [rows["better"].pop(s) for s in (1, 2, 3, 4)], "one seed"),
        (lambda rows: rows.update(better={9: 71.0}), "no common seed"),
        (lambda rows: rows.pop("plain"), "no common seed"),
    ],
)
def test_no_star_whatever_p_is(change: object, reason: str) -> None:
    rows = table()
    change(rows)  # type: ignore[operator]
    found = next(c for c in with_stars(compare_with_baseline(rows, "plain", planned=5)) if c.method == "better")
    assert (found.star, found.reason) == (False, reason)


def test_fewer_than_planned_is_shown_but_not_claimed() -> None:
    found = with_stars(compare_with_baseline(table(6), "plain", planned=8))[0]
    assert found.p_holm is not None
    assert found.p_holm < 0.05
    assert (found.star, found.reason) == (False, "6 of 8 seeds")


def test_a_diverged_run_leaves_no_test() -> None:
    rows = table()
    rows["better"][2] = 1.0
    found = with_stars(compare_with_baseline(rows, "plain", unstable={"better"}))
    assert (found[0].p_holm, found[0].star, found[0].reason) == (None, False, "unstable")
    assert found[1].family == 2
    both = with_stars(compare_with_baseline(rows, "plain", unstable={"plain"}))
    assert {c.reason for c in both} == {"unstable"}
