"""Mean ranks over many pairs, with bars over methods that no test tells apart (a critical-difference diagram)."""

from __future__ import annotations

from kdbench.leaderboard import svg
from kdbench.leaderboard.model import MeanRanks
from kdbench.leaderboard.plots.figure import Figure

FEWEST = 10  # pairs: with fewer, the tests behind the bars can tell hardly anything apart
_LEFT, _RIGHT, _TOP, _STEP = 118.0, svg.WIDTH - 12.0, 30.0, 15.0


def rank_figures(ranks: MeanRanks | None) -> tuple[Figure, ...]:
    """Return the picture, or nothing without ranks or with fewer than ten pairs.

    Source:
        Statistics specification, section 4.
    """
    if ranks is None or ranks.pairs < FEWEST or len(ranks.ranks) < 2:
        return ()
    order = sorted(ranks.ranks, key=lambda item: (item[1], item[0]))
    across = svg.Scale(1, len(order), _LEFT, _RIGHT)
    place = {name: (across(rank), _TOP + _STEP * (i + 0.5)) for i, (name, rank) in enumerate(order)}
    below = _TOP + _STEP * len(order)
    bars = [_bar([place[name][0] for name in group], below + 8 + 8 * i) for i, group in enumerate(ranks.together)]
    bottom = below + 8 + 8 * len(bars)
    rows = (_row(name, rank, *place[name]) for name, rank in order)
    title = f"Mean ranks over {ranks.pairs} pairs"
    picture = svg.picture(bottom + 34, title, svg.axis_below(across, _TOP, bottom, "mean rank"), *rows, *bars)
    return (Figure(title, picture, f"1 is best. Bars join methods that are not shown to differ ({ranks.test})."),)


def _row(name: str, rank: float, x: float, y: float) -> str:
    shown = svg.label(_LEFT - 8, y, svg.shortened(name, _LEFT - 10), class_="end")
    return svg.tag("g", svg.hint(f"{name}: {rank:.2f}"), shown, svg.tag("path", class_="dots", d=svg.dots([(x, y)])))


def _bar(places: list[float], y: float) -> str:
    return svg.tag("path", class_="together", d=svg.line([(min(places) - 3, y), (max(places) + 3, y)]))
