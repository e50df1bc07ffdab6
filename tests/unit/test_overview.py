"""All pairs together: two questions kept apart, what may be said of each, and what may not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judged_boards import ANCHOR, answers, arm, cell, clear, judged, noisy, shuffled
from scipy import stats

from kdbench.config.schema import Schedule
from kdbench.errors import ConfigError
from kdbench.leaderboard import Cell, to_html, to_json, to_latex, to_markdown
from kdbench.leaderboard.judgement import OverallGain, Overview
from kdbench.leaderboard.overall_text import verdict


def pairs(count: int, datasets: int = 1, **changes: Any) -> list[Cell]:
    """Return ``clear`` on so many pairs."""
    return [
        each
        for index in range(count)
        for each in clear(pair=f"pair{index:02}", dataset=f"set{index % datasets}", **changes)
    ]


def view(cells: list[Cell]) -> Overview:
    (found,) = judged(cells).overviews
    return found


def gain(found: Overview, method: str, baseline: int = 1) -> OverallGain:
    (row,) = [row for row in found.rows if row.method == method]
    value = row.gains[baseline]
    assert value is not None
    return value


def test_one_pair_has_no_overview() -> None:
    assert judged(clear()).overviews == ()
    assert "overviews" not in json.loads(to_json(judged(clear())))


def test_on_these_pairs_by_hand() -> None:
    found = view(pairs(2))
    best = gain(found, "best")
    first = [a - b for a, b in zip(scores("best"), scores("plain"), strict=True)]
    variance = stats.tvar(first) / 5
    half = stats.t.ppf(0.975, 8) * (2 * variance) ** 0.5 / 2  # two equal pairs: four degrees of freedom each
    assert best.mean == pytest.approx(1.5)
    assert best.interval is not None
    assert best.interval.high == pytest.approx(1.5 + half)
    assert best.star
    assert (best.p_flip, best.floor) == (2**-9, 2**-9)  # ten differences, all positive
    assert (best.improved, best.iqm) == (1.0, pytest.approx(1.5, abs=0.1))
    assert dict(found.families) == {"alone": 3, "plain": 3}
    assert "+1.50 [+1." in to_markdown(judged(pairs(2)))
    assert "0.002 (floor 0.002)" in to_markdown(judged(pairs(2)))


def scores(method: str) -> list[float]:
    return [
        each.record.accuracy.last
        for each in clear()
        if each.spec.method == method and each.record and each.record.accuracy
    ]


def test_gap_closed_ranks_and_order() -> None:
    found = view(pairs(2))
    assert [row.method for row in found.rows] == ["best", "other", "plain", "alone"]
    assert [row.mean_rank for row in found.rows] == [1, 2, 3, 4]
    assert [row.points for row in found.rows] == [6, 4, 2, 0]
    assert found.rows[0].gap_closed == pytest.approx(3.5 / 10)  # 70 alone, teacher 80
    assert found.rows[3].gap_closed is None
    narrow = [
        *pairs(1),
        *noisy("alone", 78.5, pair="near"),
        *noisy("plain", 79.0, 1, pair="near"),
        *noisy("other", 79.0, 2, pair="near"),
        *noisy("best", 79.5, 3, pair="near"),
    ]
    assert (view(narrow).rows[0].gaps, view(narrow).rows[0].gap_closed) == (1, pytest.approx(0.35))


def test_the_winner_on_these_pairs_and_why_no_more_is_said() -> None:
    found = view(pairs(2))
    assert found.overall.winner == "best"
    assert verdict(found) == (
        "Verdict: winner on these pairs: best: shown better on average than every rival (Holm), and on no pair worse "
        "by 0.20 pt."
    )
    text = to_markdown(judged(pairs(2)))
    assert (
        "Nothing is said about pairs that were not run: 2 pairs on 1 dataset; that takes 6 pairs on 2 datasets." in text
    )
    assert "### On pairs that were not run" not in text
    assert "Wilcoxon" not in text
    assert gain(found, "best").p_new is None
    assert "dataset set0 (2 pairs); trained network small (2 pairs); teacher big (2 pairs)" in text


@pytest.mark.parametrize(("count", "datasets", "general"), [(5, 2, False), (6, 1, False), (6, 2, True)])
def test_new_pairs_need_six_pairs_on_two_datasets(count: int, datasets: int, general: bool) -> None:
    board = judged(pairs(count, datasets))
    (found,) = board.overviews
    assert found.general == general
    assert (gain(found, "best").p_new is not None) == general
    for text in (to_markdown(board), to_html(board), to_latex(board)):
        assert ("Wilcoxon p" in text) == general
    assert found.overall.general == general  # better by a point everywhere: then also in words
    assert ("generally better" in verdict(found)) == general


def test_new_pairs_take_one_value_a_pair() -> None:
    best = gain(view(pairs(6, 2)), "best")
    assert best.p_new == pytest.approx(3 * 2**-5)  # six of six positive, Holm over three
    assert best.p_above is not None
    assert best.p_above > 0.95


def test_a_method_on_one_pair_only_is_shown_and_cannot_win() -> None:
    found = view([*pairs(2), *noisy("guest", 76.0, pair="pair00", dataset="set0")])
    assert gain(found, "guest").unclaimed == "1 of 2 pairs"
    assert not gain(found, "guest").star
    assert found.overall.left_out == ("guest",)
    assert "Cannot win, since a pair is missing or a run diverged: guest." in to_markdown(
        judged([*pairs(2), *noisy("guest", 76.0, pair="pair00", dataset="set0")])
    )


def test_too_few_seeds_on_one_pair_claim_nothing() -> None:
    cells = [each for each in pairs(2) if each.spec.pair == "pair00" or each.spec.seed < 3]
    found = view(cells)
    assert gain(found, "best").unclaimed == "3 of 5 seeds on set0 pair01"
    assert not gain(found, "best").star
    assert found.overall.winner is None


def test_a_diverged_run_is_not_tested_over_pairs_either() -> None:
    wild = [
        *noisy("wild", 76.0, pair="pair00", dataset="set0"),
        *noisy("wild", 76.0, pair="pair01", dataset="set0")[:4],
    ]
    found = view([*pairs(2), *wild, cell("wild", 4, None, pair="pair01", dataset="set0")])
    assert (gain(found, "wild").p_holm, gain(found, "wild").unclaimed) == (None, "unstable")
    assert found.overall.winner == "best"
    assert "wild" in found.overall.left_out


def test_a_planned_run_that_lacks_and_a_missing_baseline_are_no_win() -> None:
    missing = Cell(cell("other", 5, 72.0, pair="pair00", dataset="set0").spec)
    assert "other lacks planned runs" in view([*pairs(2), missing]).overall.reasons
    lonely = [each for each in pairs(2) if each.spec.method != "alone"]
    assert "baseline alone is missing on some pair" in view(lonely).overall.reasons
    plain = [each for each in pairs(2) if each.spec.method != "best"]
    plain = [each for each in plain if each.spec.method != "other"]
    assert "the best is the baseline plain" in view(plain).overall.reasons


def test_options_that_differ_between_pairs_leave_a_method_out() -> None:
    tuned = [
        *noisy("tuned", 76.0, pair="pair00", dataset="set0", options={"beta": 1}),
        *noisy("tuned", 76.0, pair="pair01", dataset="set0", options={"beta": 2}),
    ]
    found = view([*pairs(2), *tuned])
    assert found.changed == ("tuned",)
    assert "tuned" not in [row.method for row in found.rows]
    assert "Left out, since version or options differ between pairs: tuned." in to_markdown(judged([*pairs(2), *tuned]))


def test_one_protocol_name_of_two_contents_is_refused_across_pairs() -> None:
    other = ANCHOR.model_copy(update={"schedule": Schedule(epochs=4)})
    spec = cell("best", 0, 73.0, pair="trio", anchor=other).spec
    with pytest.raises(ConfigError, match=r"proto-v1: 2 anchors of one name") as caught:
        judged([*clear(), Cell(spec)])
    assert "proto-v1/toy/trio/best/seed0" in str(caught.value)


def test_ranks_from_ten_pairs_on() -> None:
    assert judged(pairs(9, 2)).ranks is None
    ranks = judged(pairs(10, 2)).ranks
    assert ranks is not None
    assert dict(ranks.ranks) == {"best": 1, "other": 2, "plain": 3, "alone": 4}
    assert ranks.together == ()  # ten of ten pairs agree on every two methods
    tied = judged([*pairs(10, 2), *(each for p in range(10) for each in twin(p))]).ranks
    assert tied is not None
    assert ("best", "twin") in tied.together or ("twin", "best") in tied.together


def twin(index: int) -> list[Cell]:
    """Return a method that is as good as the best, on some pairs a bit better and on others a bit worse."""
    return noisy("twin", 73.5 + (0.1 if index % 2 else -0.1), 4, pair=f"pair{index:02}", dataset=f"set{index % 2}")


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_runs_changes_no_bit_of_an_overview(seed: int) -> None:
    cells = [*pairs(6, 2), *arm("few", 73.0, 74.0, pair="pair00", dataset="set0")]
    expected, found = judged(cells), judged(shuffled(cells, seed))
    assert to_markdown(found) == to_markdown(expected)
    assert to_json(found) == to_json(expected)


@pytest.mark.parametrize(("datasets", "shrinks"), [(1, 1.0), (2, 2**0.5)])
def test_overall_gains_are_held_against_the_test_images(datasets: int, shrinks: float) -> None:
    board = judged(pairs(2, datasets), answers=answers(images=2000, disagree=0.9))
    (found,) = board.overviews
    best = gain(found, "best")
    (row,) = [row for row in board.tables[0].rows if row.method == "best"]
    assert row.gains[1].se_test is not None
    assert best.se_test == pytest.approx(row.gains[1].se_test / shrinks)  # both pairs have the same runs
    assert best.star
    assert best.dagger == (best.se_test * 1.96 > 1.5)
    assert best.dagger
    assert "gain over plain within the noise of the test images" in found.overall.reasons
    assert found.overall.winner is None
    for text in (to_markdown(board), to_html(board)):
        assert "†: significant over seeds, but below 1.96 SE_test, in which errors" in text


def test_overall_gains_without_predictions_have_no_dagger_and_it_says_so() -> None:
    board = judged(pairs(2), answers=None)
    best = gain(board.overviews[0], "best")
    assert (best.star, best.dagger, best.se_test) == (True, False, None)
    assert "not known" in to_markdown(board).partition("## All 2 pairs")[2]


def test_the_footer_tells_how_well_the_images_tell_a_level() -> None:
    board = judged(clear())
    level = board.tables[0].judgement.level
    assert level is not None
    best = max(row.scored.mean for row in board.tables[0].rows if row.scored)
    expected = stats.binomtest(round(best * 100), 10_000).proportion_ci(method="wilson")
    assert (level.interval.low, level.interval.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert f"95 % Wilson interval of {100 * expected.low:.2f} to {100 * expected.high:.2f} %" in to_markdown(board)
    assert "Wilson" not in to_markdown(judged(clear(), answers=None))
