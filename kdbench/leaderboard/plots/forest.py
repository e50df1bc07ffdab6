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
        hint: What is shown over it.
    """

    name: str
    mean: float
    interval: Interval | None
    seeds: tuple[float, ...]
    hint: str


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
    edges = "".join(f"M{scale(mark):.1f} {_TOP}V{bottom}" for mark in marks)
    lines = (_line(arm, _TOP + _STEP * (index + 0.5), scale) for index, arm in enumerate(arms))
    axes = svg.axis_below(scale, _TOP, bottom, axis)
    return svg.picture(bottom + 34, title, axes, svg.tag("path", d=edges, class_="mark"), *lines)


def _line(arm: Arm, y: float, scale: svg.Scale) -> str:
    interval = arm.interval
    bar = svg.line([(scale(interval.low), y), (scale(interval.high), y)]) if interval else None
    name = svg.shortened(arm.name, _LABELS - 6)
    return svg.tag(
        "g",
        svg.hint(arm.hint),
        svg.label(_LABELS - 6, y, name, class_="end"),
        svg.tag("path", class_="ci", d=bar) if bar else "",
        svg.tag("path", class_="dots", d=svg.dots((scale(value), y) for value in arm.seeds)),
        svg.tag("path", class_="mean", d=svg.line([(scale(arm.mean), y - 5), (scale(arm.mean), y + 5)])),
    )


def _ends(interval: Interval | None) -> tuple[float, ...]:
    return (interval.low, interval.high) if interval else ()
