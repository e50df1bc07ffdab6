"""A line per method: its interval as a bar, its mean as a tick, its seeds as dots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.leaderboard import svg
from kdbench.stats import Interval

_LABELS, _RIGHT, _TOP, _STEP = 112.0, svg.WIDTH - 10.0, 8.0, 18.0


@dataclass(frozen=True)
class Arm:
    """One line.

    Args:
        name: Method.
        mean: Where its tick stands.
        interval: Ends of its bar, or None.
        seeds: Where its dots stand.
        hint: What is shown over its name; empty = nothing.
    """

    name: str
    mean: float
    interval: Interval | None
    seeds: tuple[float, ...]
    hint: str = ""


def forest(title: str, axis: str, arms: Sequence[Arm], marks: Sequence[float]) -> str:
    """Return the picture.

    Args:
        title: For those who do not see it.
        axis: What is measured, with its unit.
        arms: Lines from top to bottom; at least one.
        marks: Values that the reader compares with, drawn as lines from top to bottom.
    """
    values = [value for arm in arms for value in (arm.mean, *arm.seeds, *_ends(arm.interval))]
    scale = svg.fitted([*values, *marks], _LABELS, _RIGHT)
    bottom = _TOP + _STEP * len(arms)
    ys = [_TOP + _STEP * (index + 0.5) for index in range(len(arms))]
    placed = list(zip(arms, ys, strict=True))
    edges = "".join(f"M{scale(mark):.1f} {_TOP:.0f}V{bottom:.0f}" for mark in marks)
    bars = "".join(svg.line([(scale(a.interval.low), y), (scale(a.interval.high), y)]) for a, y in placed if a.interval)
    # One path for all dots, and so on: a page of a thousand lines stays small.
    paths = {
        "mark": edges,
        "ci": bars,
        "dots": svg.dots((scale(value), y) for arm, y in placed for value in arm.seeds),
        "mean": "".join(svg.line([(scale(arm.mean), y - 5), (scale(arm.mean), y + 5)]) for arm, y in placed),
    }
    drawn = (svg.tag("path", class_=name, d=data) for name, data in paths.items() if data)
    axes = svg.axis_below(scale, _TOP, bottom, axis)
    names = svg.tag("g", *(_name(arm, y) for arm, y in placed), class_="end", transform=f"translate({_LABELS - 6:.0f})")
    return svg.picture(bottom + 34, title, axes, *drawn, names)


def _name(arm: Arm, y: float) -> str:
    hint = svg.hint(arm.hint) if arm.hint else ""
    return svg.tag("text", hint, svg.words(svg.shortened(arm.name, _LABELS - 6)), y=y + 3.5)


def _ends(interval: Interval | None) -> tuple[float, ...]:
    return (interval.low, interval.high) if interval else ()
