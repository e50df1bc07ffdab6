"""Plots: what is drawn where, and what is left out with a reason."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import madeup
import pytest

from kdbench.leaderboard import Leaderboard, build, svg
from kdbench.leaderboard.model import MeanRanks, Table
from kdbench.leaderboard.plots import Figure, board_figures, figures

TITLES = [
    "Gain over alone",
    "Gain over plain",
    "Gap to the teacher closed",
    "Accuracy against training time",
    "Accuracy against size",
]


def first(board: Leaderboard) -> Table:
    return board.tables[0]


def one(table: Table, title: str) -> tuple[Figure, ET.Element]:
    (figure,) = [each for each in figures(table) if each.title == title]
    return figure, ET.fromstring(figure.svg)


def paths(picture: ET.Element, kind: str) -> list[str]:
    return [node.attrib["d"] for node in picture.iter("path") if kind in node.get("class", "").split()]


def starts(data: str) -> list[tuple[float, float]]:
    """Return where each stroke of a path begins."""
    found: list[tuple[float, float]] = []
    for kind, x, y in re.findall(r"([Mm])(-?[\d.]+) ?(-?[\d.]+)", data):
        a, b = found[-1] if kind == "m" else (0.0, 0.0)  # relative ones follow dots, which have no length
        found.append((a + float(x), b + float(y)))
    return found


def shown(picture: ET.Element) -> list[str]:
    return ["".join(node.itertext()).removeprefix(node.findtext("title", "")) for node in picture.iter("text")]


def test_all_pictures_of_a_table() -> None:
    assert [figure.title for figure in figures(first(madeup.small()))] == TITLES
    assert [figure.title for figure in figures(first(madeup.small(curve=True)))] == [*TITLES, "Learning curves"]


def test_gains_stand_where_the_axis_says() -> None:
    _, picture = one(first(madeup.small()), "Gain over alone")
    (zero,) = starts(paths(picture, "mark")[0])
    ticks = {node.text: float(node.attrib["x"]) for node in picture.iter("text") if node.get("class") == "mid"}
    assert ticks["0"] == pytest.approx(zero[0], abs=0.11)
    unit = ticks["1"] - ticks["0"]
    values = [(x - zero[0]) / unit for x, _ in starts(paths(picture, "dots")[0])]
    assert values == pytest.approx([1, 1.5, 1, 3, 2, 1.6], abs=0.01)  # plain, then fancy, by seed
    means = [(x - zero[0]) / unit for x, _ in starts(paths(picture, "mean")[0])]
    assert means == pytest.approx([3.5 / 3, 2.2], abs=0.01)
    lows = [(x - zero[0]) / unit for x, _ in starts(paths(picture, "ci")[0])]
    assert lows == pytest.approx([0.4496, 0.4086], abs=0.01)
    assert shown(picture)[-2:] == ["plain", "fancy"]
    assert [node.text for node in picture.iter("title")] == [
        "plain: +1.17 [+0.45, +1.88]",
        "fancy: +2.20 [+0.41, +3.99]",
    ]


def test_a_diverged_row_is_named_and_not_drawn() -> None:
    table = first(madeup.varied())
    for figure in figures(table):
        assert "wild" not in figure.svg
        if figure.title != "Gap to the teacher closed":
            assert "wild" in figure.text.partition("Not shown")[2], figure.title


def test_the_gap_is_closed_by_shares_of_it() -> None:
    # alone 71, teacher 79.5: plain 72.1667 closes 13.7 %, fancy 73.2 closes 25.9 %
    figure, picture = one(first(madeup.small()), "Gap to the teacher closed")
    zero, whole = starts(paths(picture, "mark")[0])
    means = [100 * (x - zero[0]) / (whole[0] - zero[0]) for x, _ in starts(paths(picture, "mean")[0])]
    assert means == pytest.approx([100 * 1.16667 / 8.5, 100 * 2.2 / 8.5], abs=0.1)
    assert "0: alone, 71.00 %; 100: teacher big, 79.50 %" in figure.text


@pytest.mark.parametrize(("teacher", "count"), [(73.0, 1), (72.9, 0), (60.0, 0)])
def test_no_gap_below_two_points(teacher: float, count: int) -> None:
    table = first(madeup.small())
    weaker = replace(table, teachers=(madeup.TEACHER.model_copy(update={"accuracy": teacher}),))
    assert [figure.title for figure in figures(weaker)].count("Gap to the teacher closed") == count


def test_no_gap_without_a_student_alone() -> None:
    (table,) = build([*madeup.arm("plain", 71.0), *madeup.arm("fancy", 72.0)], madeup.BASELINES).tables
    assert "Gap to the teacher closed" not in [figure.title for figure in figures(table)]


def test_methods_differ_in_shape_and_colour_and_have_their_names() -> None:
    _, picture = one(first(madeup.small()), "Accuracy against training time")
    marks = [node for node in picture.iter("path") if {"dot", "shape"} & set(node.get("class", "").split())]
    assert [node.attrib["class"] for node in marks] == ["s0 dot", "s1 shape", "s2 shape"]
    assert len({re.sub(r"^M[\d.]+ [\d.]+", "", node.attrib["d"]) for node in marks}) == 3
    assert {"alone", "plain", "fancy"} <= set(shown(picture))
    assert len(starts(paths(picture, "error")[0])) == 3


def test_no_size_plot_where_all_have_one_size() -> None:
    table = first(madeup.small())
    same = replace(table, rows=tuple(replace(row, deployed_parameters=(5,)) for row in table.rows))
    assert "Accuracy against size" not in [figure.title for figure in figures(same)]


def test_names_never_cover_one_another() -> None:
    _, picture = one(first(madeup.large(40, 1)), "Accuracy against training time")
    boxes = []
    for node in picture.iter("text"):
        if (text := node.text or "").startswith(("method", "alone", "plain")):
            width = len(text) * svg.CHARACTER
            left = float(node.attrib["x"]) - {"end": width, "mid": width / 2}.get(node.get("class", ""), 0)
            boxes.append((left, float(node.attrib["y"]), left + width))
    assert len(boxes) > 5
    for index, (left, y, right) in enumerate(boxes):
        for other_left, other_y, other_right in boxes[index + 1 :]:
            assert left >= other_right or other_left >= right or abs(y - other_y) >= 10


def test_curves_end_at_the_score_and_are_grey_after_the_eighth() -> None:
    figure, picture = one(first(madeup.large(12, 1)), "Learning curves")
    curves = [node for node in picture.iter("path") if node.find("title") is not None]
    assert len(curves) == 12
    assert [node.get("class") for node in curves].count("curve rest") == 4
    assert "Grey: the other methods" in figure.text
    assert "From epoch 50 on" in figure.text
    assert len(shown(picture)) - len([t for t in shown(picture) if not t.startswith(("method", "alone", "plain"))]) == 8


def test_curves_of_few_points_are_shown_whole() -> None:
    cells = [replace(madeup.cell("m", 0, 70.0), curve=((1, 10.0), (240, 70.0))), *madeup.arm("n", 71.0, curve=True)]
    (table,) = build(cells, ()).tables
    figure, picture = one(table, "Learning curves")
    assert "From epoch" not in figure.text
    assert len([node for node in picture.iter("path") if node.find("title") is not None]) == 2


def ranks(pairs: int) -> Leaderboard:
    values = (("b", 2.5), ("a", 1.2), ("c", 2.3))
    return replace(madeup.small(), ranks=MeanRanks(pairs, values, (("b", "c"),), "Wilcoxon with Holm, 5 %"))


def test_ranks_only_over_ten_pairs() -> None:
    assert board_figures(madeup.small()) == ()
    assert board_figures(ranks(9)) == ()
    (figure,) = board_figures(ranks(10))
    picture = ET.fromstring(figure.svg)
    assert [text for text in shown(picture) if text in {"a", "b", "c"}] == ["a", "c", "b"]
    assert [node.text for node in picture.iter("title")] == ["a: 1.20", "c: 2.30", "b: 2.50"]
    assert len(paths(picture, "together")) == 1
    assert "Wilcoxon with Holm, 5 %" in figure.text
