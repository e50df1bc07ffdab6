"""What one table may claim: every symbol, sentence and refusal, from hand-made scores."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from judged_boards import BASELINES, answers, arm, cell, clear, judged, noisy, shuffled
from scipy import stats

from kdbench.errors import ConfigError
from kdbench.leaderboard import Cell, to_csv, to_html, to_json, to_latex, to_markdown
from kdbench.leaderboard.judged_text import verdict
from kdbench.leaderboard.model import Gain, Row, Table
from kdbench.spec import DeclaredDeviation


def table(cells: list[Cell], **kwargs: Any) -> Table:
    return judged(cells, **kwargs).tables[0]


def row(found: Table, method: str) -> Row:
    return next(each for each in found.rows if each.method == method)


def over(found: Table, method: str, baseline: str = "plain") -> Gain:
    return next(gain for gain in row(found, method).gains if gain.baseline == baseline)


def test_a_winner_needs_everything_and_then_is_named() -> None:
    found = table(clear())
    assert found.judgement.decision.winner == "best"
    assert verdict(found) == (
        "Verdict: winner: best on this pair: shown better than every other method; its gains over the baselines are at "
        "least 0.20 pt, and hold for other test images of their kind."
    )
    text = to_markdown(judged(clear()))
    assert "| **73.50 ± 0.11** | a " in text
    assert r"\textbf{73.50 $\pm$ 0.11}" in to_latex(judged(clear()))
    assert "<b>73.50 ± 0.11</b>" in to_html(judged(clear()))
    assert text.count("**") == 2


def test_p_is_the_paired_t_test_after_holm_over_the_column() -> None:
    found = table(clear())
    scores = {each.method: [o.score for o in each.outcomes] for each in found.rows}
    raw = {m: stats.ttest_rel(scores[m], scores["plain"]).pvalue for m in ("alone", "other", "best")}
    order = sorted(raw, key=lambda method: raw[method])
    expected, running = {}, 0.0
    for place, method in enumerate(order):
        running = max(running, min(1.0, (3 - place) * raw[method]))
        expected[method] = running
    for method, p in expected.items():
        assert over(found, method).p_holm == pytest.approx(p)
    assert dict(found.judgement.families) == {"alone": 3, "plain": 3}
    assert "(m = 3 with alone, m = 3 with plain)" in to_markdown(judged(clear()))


def test_a_star_from_five_seeds_on_only() -> None:
    five = table(clear())
    assert over(five, "best").star
    assert not over(five, "other").star
    four = table([each for each in clear() if each.spec.seed < 4])
    gain = over(four, "best")
    assert gain.p_holm is not None
    assert gain.p_holm < 0.05
    assert (gain.star, gain.unclaimed) == (False, "4 of 5 seeds")
    assert not any(each.bold or each.ties for each in four.rows)
    assert four.judgement.decision.text.startswith("no winner: nothing can be said, MDE ")
    text = to_markdown(judged([each for each in clear() if each.spec.seed < 4]))
    assert "Nothing is bold, and no row has a rank: 4 of 5 seeds that all methods have." in text
    assert "No star: 4 of 5 seeds." in text
    assert "*" not in text
    assert "(n=4)" in text


def test_an_incomplete_method_takes_the_star_from_itself_and_bold_from_all() -> None:
    cells = [*clear(), *(Cell(each.spec) for each in noisy("late", 73.0)[:1])]
    cells += noisy("late", 73.0)[1:]
    found = table(cells)
    assert over(found, "late").unclaimed == "4 of 5 seeds"
    assert over(found, "best").star
    assert found.judgement.decision.reasons == ("4 of 5 seeds that all methods have",)
    assert not any(each.bold for each in found.rows)


def test_seeds_planned_beyond_five_must_be_there_too() -> None:
    cells = [*clear(), Cell(cell("best", 5, 73.5).spec)]
    assert over(table(cells), "best").unclaimed == "5 of 6 seeds"
    assert not over(table(cells), "best").star


def test_unequal_seeds_are_compared_where_both_have_them() -> None:
    cells = [each for each in clear() if not (each.spec.method == "plain" and each.spec.seed == 0)]
    gain = over(table(cells), "best")
    assert gain.difference is not None
    assert gain.difference.seeds == (1, 2, 3, 4)
    assert gain.unclaimed == "4 of 5 seeds"


def test_a_diverged_run_is_neither_starred_nor_bold_nor_tested() -> None:
    wild = [*noisy("wild", 75.0)[:4], cell("wild", 4, None)]
    found = table([*clear(), *wild])
    gain = over(found, "wild")
    assert (gain.p_holm, gain.star, gain.unclaimed) == (None, False, "unstable")
    assert not row(found, "wild").bold
    assert row(found, "wild").ties == ""
    assert found.judgement.best.left_out == ("wild",)
    assert found.judgement.decision.winner == "best"  # a method that diverges takes nothing from the others
    assert dict(found.judgement.families)["plain"] == 4  # it was planned, so it counts


def test_methods_close_together_are_bold_together_and_there_is_advice() -> None:
    found = table([*clear(), *noisy("second", 73.45)])
    assert {each.method for each in found.rows if each.bold} == {"best", "second"}
    judgement = found.judgement
    assert judgement.std is not None
    needs = dict(judgement.advice)
    assert needs[0.3] > needs[0.5] >= 2
    assert judgement.decision.mde is not None
    assert verdict(found) == (
        f"Verdict: no winner: {{best, second}}, MDE {judgement.decision.mde:.2f} pt. Against a winner: 2 methods are "
        f"not shown worse than the best. Standard deviation of a paired difference {judgement.std:.2f} pt; a gain of "
        f"0.3 pt needs {needs[0.3]} seeds; a gain of 0.5 pt needs {needs[0.5]} seeds."
    )


def test_bold_by_tukey_with_seeds_as_blocks() -> None:
    found = table([*clear(), *noisy("second", 73.45)])
    best = found.judgement.best
    values = [[o.score or 0.0 for o in each.outcomes] for each in found.rows]
    means = [sum(each) / 5 for each in values]
    by_seed = [sum(each[seed] for each in values) / 5 for seed in range(5)]
    grand = sum(means) / 5
    squares = sum((values[m][seed] - means[m] - by_seed[seed] + grand) ** 2 for m in range(5) for seed in range(5))
    width = stats.studentized_range.ppf(0.95, 5, 16) * math.sqrt(squares / 16 / 5)
    assert best.hsd == pytest.approx(width, rel=1e-6)
    assert {each.method for each, mean in zip(found.rows, means, strict=True) if mean >= max(means) - width} == set(
        best.bold
    )


def test_unequal_variances_take_the_pooled_p_and_the_tie_groups_away() -> None:
    even = table(clear())
    assert over(even, "best").p_pooled is not None
    assert {each.ties for each in even.rows} == {"a", "b", "c"}
    cells = [*clear(), *noisy("rough", 72.0, 4, scale=12.0)]
    found = table(cells)
    assert found.judgement.best.guard_ratio is not None
    assert found.judgement.best.guard_ratio > 2.5
    assert all(gain.p_pooled is None for each in found.rows for gain in each.gains)
    assert not any(each.ties for each in found.rows)
    text = to_markdown(judged(cells))
    assert "No pooled p: variances are too unequal" in text
    assert "(Holm over all pairs of methods, n = 5)" in text


def test_a_dagger_where_the_images_do_not_carry_the_gain() -> None:
    cells = [*noisy("alone", 70.0), *noisy("plain", 72.0, 1), *noisy("best", 72.6, 3)]
    reader = answers(images=1000, disagree=0.5)
    found = table(cells, answers=reader)
    gain = over(found, "best")
    assert gain.star
    assert gain.se_test is not None
    assert 1.96 * gain.se_test > 0.6
    assert gain.dagger
    assert found.judgement.decision.winner is None
    assert "gain over plain within the noise of the test images" in found.judgement.decision.reasons
    text = to_markdown(judged(cells, answers=reader))
    assert "]*† |" in text
    assert "†: significant over seeds, but below 1.96 SE_test" in text
    assert not over(table(cells, answers=answers(images=100_000)), "best").dagger


def test_without_answers_nobody_wins_and_it_says_so() -> None:
    found = table(clear(), answers=None)
    assert found.judgement.best.bold == ("best",)
    assert found.judgement.decision.winner is None
    assert found.judgement.decision.reasons == (
        "SE_test of the gain over alone is not known",
        "SE_test of the gain over plain is not known",
    )
    text = to_markdown(judged(clear(), answers=None))
    assert "6 gains without SE_test: predictions of their runs are not there" in text
    assert "SE_test vs" not in text


def test_one_run_without_answers_takes_se_test_from_its_method_alone() -> None:
    whole = answers()
    found = table(clear(), answers=lambda c: None if (c.spec.method, c.spec.seed) == ("other", 0) else whole(c))
    assert over(found, "other").se_test is None
    assert over(found, "best").se_test is not None
    assert found.judgement.decision.winner == "best"


def test_a_baseline_that_is_best_or_missing_is_no_winner() -> None:
    strong = [*noisy("alone", 70.0), *noisy("plain", 74.0, 1), *noisy("best", 72.0, 3)]
    assert "the best is the baseline plain" in table(strong).judgement.decision.reasons
    lonely = [each for each in clear() if each.spec.method != "alone"]
    assert table(lonely).judgement.decision.reasons == ("baseline alone is missing",)
    assert "No gain over alone" in to_markdown(judged(lonely))


def test_a_gain_below_the_rope_is_no_win() -> None:
    still = [*noisy("alone", 70.0, scale=0.1), *noisy("plain", 72.0, 1, scale=0.1), *noisy("best", 72.1, 3, scale=0.1)]
    found = table(still, answers=answers(images=10**6))
    assert over(found, "best").star
    assert found.judgement.decision.reasons == ("gain over plain below 0.2 pt",)


def test_equal_is_said_by_two_one_sided_tests_only() -> None:
    cells = [*clear(), *noisy("same", 72.01, 4, scale=0.3)]
    found = table(cells)
    assert over(found, "same").equal
    assert not over(found, "best").equal
    sentence = (
        "Practically equal to plain, since the 90 % t interval lies within the ROPE (each for one comparison): same."
    )
    assert sentence in to_markdown(judged(cells))
    few = [each for each in cells if each.spec.seed < 4]
    assert not over(table(few), "same").equal  # nothing is claimed of four seeds, not even that
    assert "Practically equal" not in to_markdown(judged(clear()))


def test_zero_variance_has_no_p_and_no_claim() -> None:
    flat = [*arm("alone", *[70.0] * 5), *arm("plain", *[71.0] * 5), *arm("best", *[73.0] * 5)]
    found = table(flat)
    assert (over(found, "best").p_holm, over(found, "best").unclaimed) == (None, "zero variance")
    assert found.judgement.decision.reasons == ("zero variance",)
    assert "+2.00 [n/a (zero variance)]" in to_markdown(judged(flat))
    assert found.judgement.rho is None


def test_one_seed_and_one_method() -> None:
    one = table([*arm("alone", 70.0), *arm("best", 72.0)])
    assert over(one, "best", "alone").unclaimed == "one seed"
    assert one.judgement.decision.mde is None
    assert one.judgement.advice == ()
    alone = table(arm("best", 70.0, 71.0))
    assert alone.judgement.decision.reasons[0] == "fewer than two methods to compare"


def test_rows_of_the_open_division_are_shown_and_not_tested() -> None:
    freed = (DeclaredDeviation(key="loss.tau", value=2.0, reason="as published"),)
    board = judged([*clear(), *noisy("freed", 75.0, deviations=freed)])
    closed, opened = board.tables
    gain = over(opened, "freed")
    assert gain.difference is not None
    assert gain.difference.mean == pytest.approx(3.0)
    assert (gain.p_holm, gain.star, gain.unclaimed) == (
        None,
        False,
        "open division: its rows follow different protocols",
    )
    assert gain.se_test is not None
    assert opened.judgement.decision.winner is None
    assert not any(each.bold for each in opened.rows)
    assert closed.judgement == judged(clear()).tables[0].judgement


def test_a_method_whose_runs_were_all_skipped_is_in_no_comparison() -> None:
    skipped = []
    for each in noisy("none", 70.0):
        assert each.record is not None
        record = each.record.model_copy(update={"status": "skipped", "accuracy": None, "cost": None})
        skipped.append(replace(each, record=record))
    found = table([*clear(), *skipped])
    assert found.judgement.outside == ("none",)
    assert dict(found.judgement.families)["plain"] == 3
    assert found.judgement.decision.winner == "best"
    assert "In no comparison, since all runs were skipped: none." in to_markdown(judged([*clear(), *skipped]))


def test_the_footer_has_what_the_tests_rest_on() -> None:
    text = to_markdown(judged(clear()))
    assert "alpha 0.05; ROPE ±0.20 pt; both are kdbench's, the same for every board. Pairing: rho -0." in text
    assert "Seeds 0-4; n = 5 planned per method." in text
    assert "after the last epoch (3)" in text
    assert "SE_test: standard error of the gain in points over seeds and test images together (crossed)." in text


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_runs_changes_no_bit(seed: int) -> None:
    cells = [*clear(), *clear(pair="trio"), *noisy("wild", 75.0)[:4], cell("wild", 4, None)]
    expected, found = judged(cells), judged(shuffled(cells, seed))
    for write in (to_markdown, to_json, to_csv, to_latex, to_html):
        assert write(found) == write(expected)


def test_json_and_csv_have_every_judgement() -> None:
    (tree,) = json.loads(to_json(judged(clear())))["tables"]
    judgement = tree["judgement"]
    assert (judgement["winner"], judgement["reasons"], judgement["families"]) == ("best", [], {"alone": 3, "plain": 3})
    assert (judgement["alpha"], judgement["rope"]) == (0.05, 0.2)
    (best,) = [each for each in tree["rows"] if each["method"] == "best"]
    assert (best["bold"], best["tie_group"]) == (True, "a")
    gain = best["gains"][1]
    assert (gain["star"], gain["dagger"], gain["equal"], gain["unclaimed_because"]) == (True, False, False, "")
    assert 0 < gain["p_pooled"] < gain["p_holm"] < 0.05
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(to_csv(judged(clear()))))}
    assert (lines["best"]["bold"], lines["plain"]["bold"]) == ("yes", "no")
    assert float(lines["best"]["vs_plain_p_holm"]) == gain["p_holm"]
    assert float(lines["best"]["vs_plain_se_test"]) == gain["se_test"]
    assert (lines["best"]["vs_plain_star"], lines["plain"]["vs_plain_star"]) == ("yes", "")
    assert lines["best"]["peak_memory_bytes"] == "1.0"


def test_a_seed_twice_and_a_score_that_is_no_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed 0 occurs 2 times"):
        judged([*clear(), *arm("best", 73.0)])
    with pytest.raises(ConfigError, match="status ok with accuracy nan"):
        judged([*clear(), *arm("odd", float("nan"))])


def test_baselines_are_told_not_guessed() -> None:
    assert table(clear()).baselines == BASELINES
