"""Scales, axes and elements: hand-computed places and round ticks."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from kdbench.leaderboard import svg
from kdbench.leaderboard.svg import Scale, fitted, spread_out


def test_places_are_linear_and_may_run_backwards() -> None:
    assert [Scale(10, 20, 100, 300)(value) for value in (10, 15, 20)] == [100, 200, 300]
    assert Scale(0, 4, 200, 0)(1) == 150


def test_places_are_logarithmic() -> None:
    scale = Scale(1, 100, 0, 200, log=True)
    assert [scale(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, (0, 2, 4, 6, 8, 10)),
        (-0.13, 0.41, (0.0, 0.2, 0.4)),
        (70.2, 73.9, (71, 72, 73)),
        (1e-7, 9e-7, (2e-7, 4e-7, 6e-7, 8e-7)),
        (99_950, 100_060, (99_950, 99_975, 100_000, 100_025, 100_050)),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert Scale(low, high, 0, 1).ticks() == pytest.approx(ticks)


def test_logarithmic_ticks_are_one_two_five_or_round_steps() -> None:
    assert Scale(3, 250, 0, 1, log=True).ticks() == (5, 10, 20, 50, 100, 200)
    assert Scale(60, 90, 0, 1, log=True).ticks() == (60, 70, 80, 90)  # hardly a decade: equal steps say more


@pytest.mark.parametrize(
    ("values", "log"),
    [
        *(([5.0], False), ([0.0], False), ([-3.0, -3.0], False), ([1.0, math.nan, 2.0], False)),
        *(([5.0], True), ([3.0, 3.0], True), ([1.0, 1000.0], True)),
    ],
)
def test_a_scale_holds_its_values_with_room(values: list[float], log: bool) -> None:
    scale = fitted(values, 0, 100, log=log)
    assert all(0 < scale(value) < 100 for value in values if math.isfinite(value))


def test_axis_texts_tell_the_ticks_apart() -> None:
    def texts(low: float, high: float) -> list[str | None]:
        axis = ET.fromstring(f"<g>{svg.axis_below(Scale(low, high, 0, 300), 0, 100, 'unit')}</g>")
        return [node.text for node in axis.iter("text")]

    assert texts(-2, 2) == ["\u22122", "\u22121", "0", "1", "2", "unit"]
    assert texts(0, 1.1) == ["0.00", "0.25", "0.50", "0.75", "1.00", "unit"]
    assert texts(80_000, 120_000) == ["80k", "90k", "100k", "110k", "120k", "unit"]
    assert texts(10_527, 10_533) == ["10,528", "10,530", "10,532", "unit"]
    assert texts(1_000_000, 3_000_000) == ["1.0M", "1.5M", "2.0M", "2.5M", "3.0M", "unit"]
    assert texts(1000, 1400) == ["1,000", "1,100", "1,200", "1,300", "1,400", "unit"]


@pytest.mark.parametrize(
    ("places", "apart"),
    [
        ([10, 50, 90], [10, 50, 90]),
        ([10, 12, 11], [10, 30, 20]),
        ([98, 99, 100], [80, 90, 100]),
        ([0, 0], [0, 10]),
        ([], []),
    ],
)
def test_labels_are_spread_out_in_their_order(places: list[float], apart: list[float]) -> None:
    assert spread_out(places, 10, 0, 100) == apart


def test_foreign_text_is_escaped_everywhere() -> None:
    bad = "<b a=\"'>&\u202e\x00"
    markup = svg.picture(10, bad, svg.tag("g", svg.hint(bad), data_x="<b a=\"'>&"), svg.label(0, 0, bad, class_="end"))
    tree = ET.fromstring(markup)
    clean = "<b a=\"'>&"
    assert tree.get("aria-label") == clean
    assert [node.text for node in tree.iter() if node.tag in {"title", "text"}] == [clean, clean]
    assert [node.get("data-x") for node in tree.iter("g")] == [clean]


def test_paths_are_relative_in_tenths_and_end_where_they_should() -> None:
    assert svg.line([(1, 2), (3.25, 1), (3.25, 11)]) == "M1 2l2.2-1 0 10"
    assert svg.line([(1.04, 2)]) == "M1 2"
    points = [(index / 3, index / 7) for index in range(100)]
    numbers = [float(text) for text in svg.line(points)[1:].replace("l", " ").replace("-", " -").split()]
    assert sum(numbers[0::2]) == pytest.approx(33, abs=0.051)
    assert svg.line([(1, 2), (3.25, 2)]) == "M1 2h2.2"
    assert svg.line([(1, 2), (1, 0.5)]) == "M1 2v-1.5"
    assert svg.dots([(1, 2), (3, 4)]) == "M1 2h0M3 4h0"
    assert svg.dots([(251.4, 89), (283.2, 89), (2, 107)]) == "M251.4 89h0m31.8 0h0M2 107h0"


def test_long_names_are_cut() -> None:
    assert svg.shortened("short", 100) == "short"
    cut = svg.shortened("a_very_long_name_of_a_method", 100)
    assert cut == "a_very_long_nam\u2026"
    assert len(cut) * svg.CHARACTER <= 100
