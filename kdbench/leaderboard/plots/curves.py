"""Test accuracy over the student's epochs."""

from __future__ import annotations

from kdbench.leaderboard import svg
from kdbench.leaderboard.curves import mean_curve, thinned
from kdbench.leaderboard.model import Curve, Table
from kdbench.leaderboard.plots.figure import Figure, css_class, drawable, left_out, styles

_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 40.0, svg.WIDTH - 108.0, 26.0, 226.0, 12.0
_LONG = 30  # epochs
_GREY_POINTS = 12  # of a curve that is there for the whole, not to be followed


def curve_figures(table: Table) -> tuple[Figure, ...]:
    """Return the mean curve of each row whose runs left their epochs; none if there are fewer than two epochs."""
    curves = {row.method: mean_curve(row) for row in table.rows if drawable(row)}
    known = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not known:
        return ()
    start, known = _later(known)
    across = svg.Scale(start, max(epoch for curve in known.values() for epoch, _ in curve), _LEFT, _RIGHT)
    up = svg.fitted([value for curve in known.values() for _, value in curve], _BOTTOM, _TOP)
    look = styles(table)
    grey_first = sorted(known, key=lambda name: look[name] is not None)
    lines = (_line(name, _drawn(known[name], look[name]), across, up, look[name]) for name in grey_first)
    title = "Learning curves"
    axes = svg.axis_below(across, _TOP, _BOTTOM, "epoch of the student") + svg.axis_left(
        up, _LEFT, _RIGHT, "test accuracy %"
    )
    ends = {name: up(known[name][-1][1]) for name in known if look[name] is not None}
    picture = svg.picture(_BOTTOM + 34, title, axes, *lines, *_names(ends, look))
    grey = " Grey: the other methods; point at a line for its name." if None in map(look.get, known) else ""
    cut = f" From epoch {start} on, so that the ends can be told apart." if start > 1 else ""
    text = "Mean over the seeds that are ok; the last epoch is scored, none is chosen by this curve." + cut + grey
    absent = (row.method for row in table.rows if row.method not in known)
    return (Figure(title, picture, text + left_out(absent, "diverged, or no epochs kept")),)


def _later(curves: dict[str, Curve]) -> tuple[int, dict[str, Curve]]:
    """Return the first epoch to be shown, and the curves from it on; long trainings lose their first fifth."""
    first, last = min(curve[0][0] for curve in curves.values()), max(curve[-1][0] for curve in curves.values())
    start = first if last - first < _LONG else first + (last - first) // 5
    later = {name: tuple(point for point in curve if point[0] >= start) for name, curve in curves.items()}
    if any(len(curve) < 2 for curve in later.values()):
        return first, curves
    return min(curve[0][0] for curve in later.values()), later


def _drawn(curve: Curve, style: int | None) -> Curve:
    return thinned(curve, _GREY_POINTS) if style is None else curve


def _line(name: str, curve: Curve, across: svg.Scale, up: svg.Scale, style: int | None) -> str:
    path = svg.line((across(epoch), up(value)) for epoch, value in curve)
    return svg.tag("path", svg.hint(name), class_=f"curve {css_class(style)}", d=path)


def _names(ends: dict[str, float], look: dict[str, int | None]) -> list[str]:
    """Return the names right of the ends of their lines, moved apart, each with a stroke that leads to it."""
    places = svg.spread_out(ends.values(), _GAP, _TOP, _BOTTOM)
    texts = []
    for (name, end), place in zip(ends.items(), places, strict=True):
        lead = svg.line([(_RIGHT + 1, end), (_RIGHT + 9, place), (_RIGHT + 21, place)])
        texts.append(svg.tag("path", class_=f"curve {css_class(look[name])}", d=lead))
        texts.append(svg.label(_RIGHT + 24, place, svg.shortened(name, 84)))
    return texts
