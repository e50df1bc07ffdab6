"""JSON of boards: what stands on one line, and numbers without the digits on which machines disagree."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kdbench.leaderboard.json_text import json_text, settled


def test_what_holds_nothing_further_is_one_line() -> None:
    tree = {"a": {"b": [1, 2.5], "c": []}, "d": (), "é": None, "rows": [{"x": True, "y": "\u202e"}, {"x": False}]}
    assert json_text(tree).splitlines() == [
        "{",
        '  "a": {',
        '    "b": [1, 2.5],',
        '    "c": []',
        "  },",
        '  "d": [],',
        '  "\\u00e9": null,',
        '  "rows": [',
        '    {"x": true, "y": "\\u202e"},',
        '    {"x": false}',
        "  ]",
        "}",
    ]
    assert json.loads(json_text(tree)) == tree | {"d": []}


def test_numbers_that_json_cannot_hold_are_null() -> None:
    assert json_text([math.nan, math.inf, -math.inf, 1e300, -0.0]) == "[null, null, null, 1e+300, -0.0]"


@pytest.mark.parametrize(
    ("value", "kept"),
    [(95.27777777777777, 95.27777778), (1 / 3e9, 3.333333333e-10), (123456789012345.0, 123456789012345.0), (0.0, 0.0)],
)
def test_ten_digits_and_whole_numbers_whole(value: float, kept: float) -> None:
    assert settled(value) == kept


def test_the_last_bits_make_no_difference() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    shaken = np.nextafter(np.nextafter(values, np.inf), np.inf)
    assert (values != shaken).all()
    assert json_text(values.tolist()) == json_text(shaken.tolist())
