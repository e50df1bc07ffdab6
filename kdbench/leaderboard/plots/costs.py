"""Accuracy against what it costs: seconds to train, parameters to deploy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from kdbench.leaderboard import svg
from kdbench.leaderboard.model import Row, Table
from kdbench.leaderboard.plots.figure import Figure, css_class, drawable, left_out, styles
from kdbench.leaderboard.text import parameters, seconds, spread

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, svg.WIDTH - 8.0, 26.0, 226.0
_WIDE = 10  # from this ratio of the highest to the lowest cost on, equal factors are equally far apart
# Size 7 around a point; shapes as well as colours tell methods apart.
_SHAPES = (
    "h0",  # a line of no length with round ends
    "m-3-3h6v6h-6z",
    "m0-4l4 7h-8z",
    "m0-4.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
)
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class _Point:
    row: Row
    cost: float
    accuracy: float
    std: float


def cost_figures(table: Table) -> tuple[Figure, ...]:
    """Return accuracy against train seconds and against deployed parameters; none where all cost the same."""
    found = (
        _figure(table, "Accuracy against training time", "seconds in training steps", _seconds),
        _figure(table, "Accuracy against size", "deployed parameters", _parameters),
    )
    return tuple(figure for figure in found if figure)


def _seconds(row: Row) -> float:
    return math.nan if row.train_seconds is None else row.train_seconds


def _parameters(row: Row) -> float:
    return float(max(row.deployed_parameters, default=math.nan))


def _figure(table: Table, title: str, axis: str, cost: Callable[[Row], float]) -> Figure | None:
    points = [
        _Point(row, value, row.scored.mean, row.scored.std or 0.0)
        for row in table.rows
        if drawable(row) and row.scored and math.isfinite(value := cost(row))
    ]
    costs = {point.cost for point in points}
    if len(costs) < 2:
        return None
    across = svg.fitted(costs, _LEFT, _RIGHT, log=min(costs) > 0 and max(costs) > _WIDE * min(costs))
    up = svg.fitted([p.accuracy + sign * p.std for p in points for sign in (-1, 1)], _BOTTOM, _TOP)
    known = styles(table)
    marks = [_mark(p, across(p.cost), up(p.accuracy), known[p.row.method]) for p in points]
    axes = svg.axis_below(across, _TOP, _BOTTOM, axis) + svg.axis_left(up, _LEFT, _RIGHT, "accuracy %")
    errors, names = _errors(points, across, up), _names(points, across, up)
    picture = svg.picture(_BOTTOM + 34, title, axes, errors, *marks, *names)
    shown = {point.row.method for point in points}
    text = "Lines: one standard deviation over seeds. Where names do not fit, point at a mark." + left_out(
        (row.method for row in table.rows if row.method not in shown), "diverged, or without this number"
    )
    return Figure(title, picture, text)


def _mark(point: _Point, x: float, y: float, style: int | None) -> str:
    row, number = point.row, (style or 0) % len(_SHAPES)
    said = (
        f"{row.method}: {spread(row.scored)} %, {seconds(row.train_seconds)} s, {parameters(row.deployed_parameters)}"
    )
    look = f"{css_class(style)} {'shape' if number else 'dot'}"
    return svg.tag("path", svg.hint(said), d=f"M{x:.1f} {y:.1f}{_SHAPES[number]}", class_=look)


def _errors(points: list[_Point], across: svg.Scale, up: svg.Scale) -> str:
    places = ((across(p.cost), up(p.accuracy - p.std), up(p.accuracy + p.std)) for p in points if p.std)
    bars = "".join(svg.line([(x, low), (x, high)]) for x, low, high in places)
    return svg.tag("path", class_="error", d=bars) if bars else ""


def _names(points: list[_Point], across: svg.Scale, up: svg.Scale) -> list[str]:
    """Return the names that fit beside their marks without covering one another, the first rows first."""
    places = [(across(point.cost), up(point.accuracy)) for point in points]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    texts = []
    for point, (x, y) in zip(points, places, strict=True):
        name = svg.shortened(point.row.method, 120)
        room = len(name) * svg.CHARACTER
        sides = (
            (x + 8, y, 0.0, None),
            (x - 8, y, room, "end"),
            (x, y - 11, room / 2, "mid"),
            (x, y + 11, room / 2, "mid"),
        )
        for left, middle, shift, side in sides:
            box = (left - shift, middle - 5, left - shift + room, middle + 5)
            if _inside(box) and not any(_cover(box, other) for other in taken):
                taken.append(box)
                texts.append(svg.label(left, middle, name, class_=side))
                break
    return texts


def _inside(box: Box) -> bool:
    return box[0] >= _LEFT and box[2] <= svg.WIDTH and box[1] >= _TOP - 6 and box[3] <= _BOTTOM


def _cover(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
