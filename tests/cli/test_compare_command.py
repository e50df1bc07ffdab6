"""kdbench compare: text, JSON, and what it cannot compare."""

from __future__ import annotations

import json

import pytest
from commandline import Place, failure, kdbench


def test_text_and_json_of_finished_runs(finished: Place) -> None:
    outcome = kdbench("compare", "dkd", "student", finished.runs)
    assert outcome.code == 0
    assert "dkd against student\n" in outcome.out
    assert "verdict    nothing is claimed: 2 of 5 seeds\n" in outcome.out
    tree = json.loads(kdbench("compare", "dkd", "student", finished.runs, "--json", "--pair", "tiny").out)
    expected = [
        finished.record("dkd", seed)["accuracy"]["last"] - finished.record("student", seed)["accuracy"]["last"]
        for seed in (0, 1)
    ]
    (pair,) = tree["pairs"]
    assert pair["difference"]["values"] == pytest.approx(expected, abs=1e-6)
    assert pair["se_test"] is not None  # the runs' predictions were read


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dkd", "dkd"], "'dkd' with itself"),
        (["dkt", "student"], "no runs of the method 'dkt'. Did you mean 'dkd'?"),
        (["dkd", "student", "--pair", "tinny"], "no runs of the pair 'tinny'. Did you mean 'tiny'?"),
    ],
)
def test_what_it_cannot_compare(finished: Place, words: list[str], message: str) -> None:
    assert message in failure("compare", *words[:2], finished.runs, *words[2:])


def test_a_folder_without_runs() -> None:
    assert "nowhere: no runs there" in failure("compare", "dkd", "student", "nowhere")
