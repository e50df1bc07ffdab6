"""One method against another: numbers by hand, every verdict, and questions that make no sense."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judged_boards import answers, arm, cell, clear, noisy, shuffled
from scipy import stats

from kdbench.errors import ConfigError
from kdbench.leaderboard import Cell, compare, duels_json, duels_text
from kdbench.leaderboard.compare_text import verdict
from kdbench.leaderboard.comparing import Duels
from kdbench.spec import DeclaredDeviation


def asked(cells: list[Cell], first: str = "best", second: str = "plain", **kwargs: Any) -> Duels:
    return compare(cells, first, second, **({"answers": answers()} | kwargs))


def said(found: Duels) -> str:
    return verdict(found, found.duels[0])


def test_numbers_by_hand() -> None:
    found = asked(arms := [*arm("best", 73.0, 74.0, 73.5, 73.2, 73.8), *arm("plain", 72.0, 72.5, 72.9, 72.4, 72.7)])
    (duel,) = found.duels
    difference = [1.0, 1.5, 0.6, 0.8, 1.1]
    test = stats.ttest_1samp(difference, 0)
    assert duel.gain.difference is not None
    assert duel.gain.difference.values == pytest.approx(difference)
    assert duel.gain.p_holm == pytest.approx(test.pvalue)  # one question: nothing to correct
    assert duel.flip is not None
    assert (duel.flip.p_two_sided, duel.flip.floor) == (0.0625, 0.0625)
    assert duel.equivalence is not None
    assert duel.equivalence.equal is False
    assert [size for size, _ in duel.needed] == [1.0, 0.2]
    assert duel.needed[0][1] < duel.needed[1][1]
    text = duels_text(found)
    for part in (
        "toy, duo, proto-v1, closed division: best against plain\n",
        "  difference +1.00 pt, 95 % t interval [+0.58, +1.42], n = 5 (seeds 0-4), sd 0.34\n",
        "  t test     p = 0.003, paired, two-sided; one question, so not corrected\n",
        "  sign-flip  p = 0.062 (floor 0.062)\n",
        "  verdict    best is better than plain on this pair\n",
        "alpha 0.05, ROPE ±0.20 pt.",
    ):
        assert part in text
    back = asked(arms, "plain", "best").duels[0].gain.difference
    assert back is not None
    assert back.mean == pytest.approx(-1.0)
    assert said(asked(arms, "plain", "best")) == "best is better than plain on this pair"


def test_other_methods_change_nothing() -> None:
    pair = [each for each in clear() if each.spec.method in {"best", "plain"}]
    assert duels_text(asked(clear())) == duels_text(asked(pair))
    assert duels_json(asked(shuffled(clear(), 1))) == duels_json(asked(clear()))


def test_every_verdict() -> None:
    few = [each for each in clear() if each.spec.seed < 3]
    assert said(asked(few)) == "nothing is claimed: 3 of 5 seeds"
    same = [*noisy("plain", 72.0, 1), *noisy("best", 72.01, 2, scale=0.3)]
    assert said(asked(same)) == "practically equal: within ±0.20 pt"
    rough = [*noisy("plain", 72.0, 1, scale=5), *noisy("best", 72.3, 3, scale=5)]
    assert said(asked(rough)) == "not decided: neither different nor equal is shown"
    assert said(asked(clear(), answers=None)) == "best is better than plain on this pair; other test images: not known"
    near = [*noisy("plain", 72.0, 1), *noisy("best", 72.6, 3)]
    images = said(asked(near, answers=answers(images=1000, disagree=0.5)))
    assert images == "best is better than plain on this pair; † not shown for other test images: below 1.96 SE_test"
    still = [*noisy("plain", 72.0, 1, scale=0.1), *noisy("best", 72.1, 3, scale=0.1)]
    small = said(asked(still, answers=answers(images=10**6)))
    assert small == "best is better than plain on this pair; the difference is practically none (within ±0.20 pt)"
    wild = [*noisy("plain", 72.0), *noisy("best", 75.0)[:4], cell("best", 4, None)]
    assert said(asked(wild)) == "nothing is claimed: unstable"
    apart = [cell("plain", 0, 72.0), cell("best", 1, 73.0)]
    assert said(asked(apart)) == "nothing is claimed: no common seed"
    assert "difference n/a (no common seed)" in duels_text(asked(apart))
    flat = [*arm("plain", *[72.0] * 5), *arm("best", *[73.0] * 5)]
    assert said(asked(flat)) == "nothing is claimed: zero variance"


def test_several_pairs_and_one_of_them() -> None:
    cells = [*clear(), *clear(pair="trio"), *noisy("best", 73.0, pair="solo")]
    found = asked(cells)
    assert [duel.title.split(", ")[1] for duel in found.duels] == ["duo", "trio"]
    assert found.alone == ("toy, solo, proto-v1, closed division",)
    text = duels_text(found)
    assert "all these pairs, proto-v1: best against plain\n" in text
    assert "Only one of the two has runs: toy, solo, proto-v1, closed division." in text
    one = asked(cells, pair="trio")
    assert [duel.title.split(", ")[1] for duel in one.duels] == ["trio"]
    assert (one.overall, one.alone) == ((), ())


def test_both_pairs_together_are_decided_on_these_pairs() -> None:
    text = duels_text(asked([*clear(), *clear(pair="trio")]))
    assert "  verdict    best is better than plain on average over these pairs\n" in text
    ((anchor, gain),) = asked([*clear(), *clear(pair="trio")]).overall
    assert anchor == "proto-v1"
    assert gain.star
    few = [each for each in [*clear(), *clear(pair="trio")] if each.spec.seed < 3]
    assert "  verdict    nothing is claimed: 3 of 5 seeds on toy duo\n" in duels_text(asked(few))


def test_variants_and_the_open_division() -> None:
    freed = (DeclaredDeviation(key="loss.tau", value=2.0, reason="as published"),)
    cells = [*clear(), *noisy("best", 74.0, 2, variant="long"), *noisy("freed", 75.0, deviations=freed)]
    assert said(asked(cells, "best@long", "best")).startswith("best@long is better than best")
    assert said(asked(cells, "freed", "plain")).startswith("nothing is claimed: open division")


def test_json_says_the_same() -> None:
    tree = json.loads(duels_json(asked(clear())))
    assert (tree["schema_version"], tree["first"], tree["second"]) == (1, "best", "plain")
    (pair,) = tree["pairs"]
    assert pair["significant"]
    assert pair["difference"]["mean"] == pytest.approx(1.5)
    assert pair["sign_flip"]["floor"] == 0.0625
    assert pair["verdict"] == "best is better than plain on this pair"
    wild = [*noisy("plain", 72.0), *noisy("best", 75.0)[:4], cell("best", 4, None)]
    (pair,) = json.loads(duels_json(asked(wild)), parse_constant=pytest.fail)["pairs"]
    assert (pair["sign_flip"], pair["mde"], pair["needed"]) == (None, None, [])


@pytest.mark.parametrize(
    ("first", "second", "pair", "message"),
    [
        ("best", "best", None, "'best' with itself; name two methods, or two variants of one"),
        (
            "bset",
            "plain",
            None,
            "no runs of the method 'bset'. Did you mean 'best'? There are: alone, best, other, plain",
        ),
        ("best", "plain", "dou", "no runs of the pair 'dou'. Did you mean 'duo'? There are: duo"),
    ],
)
def test_questions_without_an_answer(first: str, second: str, pair: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(clear(), first, second, pair)
    assert message in str(caught.value)


def test_no_pair_in_common_and_a_seed_twice() -> None:
    with pytest.raises(ConfigError, match="'best' and 'plain' have no pair in common"):
        asked([*noisy("best", 73.0), *noisy("plain", 72.0, pair="trio")])
    with pytest.raises(ConfigError, match="seed 0 occurs 2 times"):
        asked([*clear(), *arm("best", 73.0)])
