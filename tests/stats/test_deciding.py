"""Who won, and every reason why nobody did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdbench.stats import (
    complete_blocks,
    decide_overall,
    decide_pair,
    detectable,
    intent_to_treat,
    minimum_detectable,
)

Rows = dict[str, dict[int, float]]
BASELINES = ("alone", "plain")


def rows(best: float = 1.5, seeds: int = 5, start: int = 0) -> Rows:
    random = np.random.default_rng(start)
    gains = {"alone": 0.0, "plain": 0.5, "other": 0.4, "best": best}
    block = random.normal(0, 0.3, seeds)
    return {
        name: {s: float(70 + gain + block[s] + random.normal(0, 0.1)) for s in range(seeds)}
        for name, gain in gains.items()
    }


def test_a_winner() -> None:
    found = decide_pair(rows(), BASELINES, planned=5, protocols=["h", "h"], se_crossed={("best", "plain"): 0.2})
    assert (found.winner, found.candidates, found.reasons) == ("best", ("best",), ())
    assert found.text == "winner: best"


def dropped(table: Rows) -> None:
    del table["other"][4]


def nothing(table: Rows) -> None:
    """Leave the table as it is: the options are what speaks against a winner."""


def twin(table: Rows) -> None:
    table["twin"] = {s: v + 0.02 * (-1) ** s for s, v in table["best"].items()}


def flat(table: Rows) -> None:
    table["best"] = {s: v + 1.5 for s, v in table["plain"].items()}


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (dropped, {}, "4 of 5 seeds that all methods have"),
        (lambda table: table.update(rows(seeds=6)), {"planned": 7}, "6 of 7 seeds that all methods have"),
        (lambda table: table["best"].pop(2), {}, "4 of 5 seeds that all methods have"),
        (lambda table: table.pop("plain"), {}, "baseline plain is missing"),
        (lambda table: table.update(plain=table["best"], best=table["plain"]), {}, "the best is the baseline plain"),
        (flat, {}, "no test over plain: zero variance"),
        (nothing, {"protocols": ["one", "two"]}, "2 different protocols"),
        (nothing, {"rope": 2.0}, "gain over plain below 2 pt"),
        (
            nothing,
            {"se_crossed": {("best", "plain"): 0.9}},
            "gain over plain within the noise of the test images",
        ),
        (nothing, {"unstable": {"plain"}}, "no test over plain: unstable"),
        (
            twin,
            {},
            "2 methods are not shown worse than the best",
        ),
    ],
)
def test_no_winner_and_why(change: Callable[[Rows], Any], options: dict[str, Any], reason: str) -> None:
    table = rows()
    change(table)
    found = decide_pair(table, BASELINES, **options)
    assert found.winner is None
    assert reason in found.reasons
    assert found.text.startswith("no winner: ")


def test_without_a_baseline_nobody_wins() -> None:
    assert decide_pair(rows(), ()).reasons == ("no baseline",)


def test_a_small_gain_has_its_reasons_and_the_set_its_mde() -> None:
    found = decide_pair(rows(best=0.52, start=4), BASELINES)
    assert found.winner is None
    assert any(reason.startswith("gain over plain not significant (Holm p = ") for reason in found.reasons)
    assert "interval of the gain over plain reaches zero" in found.reasons
    assert {"best", "plain"} <= set(found.candidates)
    assert found.mde is not None
    assert found.text == f"no winner: {{{', '.join(found.candidates)}}}, MDE {found.mde:.2f} pt"


def test_a_diverged_run_can_not_win() -> None:
    table = rows()
    broken = intent_to_treat({s: ("ok", v) if s else ("diverged", None) for s, v in table["best"].items()}, 100)
    table["best"] = broken.scores
    found = decide_pair(table, BASELINES, unstable={"best"})
    assert found.winner is None
    assert "best" not in found.candidates


def test_detectable_gain_by_formula() -> None:
    table = {"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 6.0}}  # MSE 1
    assert detectable(table) == pytest.approx(minimum_detectable(2, 2**0.5))
    assert detectable({"a": {0: 1.0}}) is None
    assert detectable({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}}) is None


def test_no_order_matters() -> None:
    table = rows()
    turned = {name: dict(reversed(runs.items())) for name, runs in reversed(table.items())}
    first, second = decide_pair(table, BASELINES), decide_pair(turned, BASELINES[::-1])
    assert (first.winner, first.candidates) == (second.winner, second.candidates)
    assert complete_blocks(table).seeds == complete_blocks(turned).seeds


DATASETS = {f"p{i}": f"data{i % 2}" for i in range(6)}


def board(best: float = 1.5, pairs: int = 6, seeds: int = 5) -> dict[str, dict[str, dict[int, float]]]:
    tables = {f"p{i}": rows(best, seeds, i) for i in range(pairs)}
    return {name: {pair: table[name] for pair, table in tables.items()} for name in rows()}


def test_overall_winner() -> None:
    found = decide_overall(board(), DATASETS)
    assert (found.winner, found.leader, found.general) == ("best", "best", True)
    assert {one.rival for one in found.rivalries} == {"alone", "plain", "other"}
    assert (found.reasons, found.not_general) == ((), ())


def test_on_few_pairs_nothing_is_said_about_others() -> None:
    datasets = {"p0": "data", "p1": "data"}
    found = decide_overall(board(pairs=2), datasets)
    assert (found.winner, found.general) == ("best", False)
    assert found.not_general[:2] == ("2 of 6 pairs", "1 of 2 datasets")
    assert {one.p_above for one in found.rivalries} == {None}


def test_a_method_in_one_pair_only_is_left_out() -> None:
    table = board()
    table["lone"] = {"p0": dict.fromkeys(range(5), 99.0)}
    found = decide_overall(table, DATASETS)
    assert (found.left_out, found.winner) == (("lone",), "best")
    nobody = decide_overall({"lone": table["lone"], "best": table["best"]}, DATASETS)
    assert nobody.reasons == ("fewer than two methods with runs on every pair",)


def test_an_unstable_method_is_left_out() -> None:
    found = decide_overall(board(), DATASETS, unstable={"best"})
    assert found.left_out == ("best",)
    assert "best" not in {found.winner, found.leader}


def shift(pair: str, by: float) -> Callable[[dict[str, dict[str, dict[int, float]]]], None]:
    def change(table: dict[str, dict[str, dict[int, float]]]) -> None:
        table["best"][pair] = {s: v + by for s, v in table["best"][pair].items()}

    return change


def like_best(less: float, *, even: bool = False) -> Callable[[dict[str, dict[str, dict[int, float]]]], None]:
    """Make another method the best one but for a little: always as much less, or more and less in turn."""

    def change(table: dict[str, dict[str, dict[int, float]]]) -> None:
        for pair, runs in table["best"].items():
            table["other"][pair] = {s: v - less * (1 if even else (-1) ** s) for s, v in runs.items()}

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shift("p3", -1.6), "may be worse than plain by more than 0.2 pt on some pair"),
        (lambda table: table["best"].update(p2={0: 80.0}), "1 of 5 seeds in common with alone on some pair"),
        (lambda table: table["best"].update(p2={9: 80.0}), "0 of 5 seeds in common with alone on some pair"),
        (
            like_best(0.01),
            "not shown better than other (Holm p = ",
        ),
        (
            like_best(0.5, even=True),
            "no test against other: zero variance",
        ),
    ],
)
def test_no_overall_winner_and_why(change: Callable[[Any], Any], reason: str) -> None:
    table = board()
    change(table)
    found = decide_overall(table, DATASETS)
    assert (found.winner, found.general) == (None, False)
    assert any(text.startswith(reason) for text in found.reasons), found.reasons


def test_seeds_of_its_own_win_nothing() -> None:
    table = board(best=-1.0)
    for runs in table["best"].values():
        runs[99] = 200.0  # highest mean, but lower on every seed that others have
    found = decide_overall(table, DATASETS)
    assert (found.leader, found.winner) == ("best", None)
    assert any(reason.startswith("not shown better than alone") for reason in found.reasons)


def test_statuses() -> None:
    found = intent_to_treat(
        {3: ("ok", 70.0), 1: ("ok", 72.0), 2: ("diverged", 1.3), 5: ("missing", None), 4: ("infra_failed", 60.0)}, 50
    )
    assert found.scores == {1: 72.0, 2: 2.0, 3: 70.0}
    assert found.scored is not None
    assert found.ok_only is not None
    assert (found.scored.mean, found.ok_only.mean) == (48.0, 71.0)
    assert (found.ok, found.diverged, found.planned, found.absent) == (2, 1, 5, (4, 5))
    assert (found.unstable, found.label) == (True, "unstable 1/3")


def test_statuses_without_a_score() -> None:
    found = intent_to_treat({0: ("missing", None)}, 10)
    assert (found.scored, found.ok_only, found.unstable, found.label) == (None, None, False, "")
    all_diverged = intent_to_treat({0: ("diverged", None), 1: ("diverged", None)}, 10)
    assert all_diverged.ok_only is None
    assert all_diverged.scored is not None
    assert all_diverged.scored.mean == 10.0


@pytest.mark.parametrize(
    ("accuracy", "classes", "message"),
    [(None, 10, "seed 0 - value nan"), (101.0, 10, r"seed 0 - accuracy 101.0 - must lie in"), (50.0, 1, "classes - 1")],
)
def test_impossible_outcomes_are_refused(accuracy: float | None, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intent_to_treat({0: ("ok", accuracy)}, classes)
