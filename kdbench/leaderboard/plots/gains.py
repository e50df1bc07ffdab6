"""Gains over each baseline, with their intervals and seeds."""

from __future__ import annotations

from kdbench.leaderboard.model import Gain, Row, Table
from kdbench.leaderboard.plots.figure import Figure, left_out
from kdbench.leaderboard.plots.forest import Arm, forest
from kdbench.leaderboard.text import gain


def gain_figures(table: Table) -> tuple[Figure, ...]:
    """Return a picture per baseline; rows with diverged runs are named, not drawn."""
    found = (_figure(table, index) for index in range(len(table.baselines)))
    return tuple(figure for figure in found if figure)


def _figure(table: Table, index: int) -> Figure | None:
    rows = [(row, row.gains[index]) for row in table.rows if row.gains[index].difference is not None]
    arms = [arm for row, each in rows if (arm := _arm(row, each))]
    if not arms:
        return None
    shown = {arm.name for arm in arms}
    title = f"Gain over {table.baselines[index]}"
    return Figure(
        title=title,
        svg=forest(title, "percentage points", arms, [0.0]),
        text="Tick: mean of the paired differences; bar: its 95 % t interval for one comparison, not corrected for "
        "their number; dots: seeds."
        + left_out((row.method for row, _ in rows if row.method not in shown), "diverged runs, or no common seed"),
    )


def _arm(row: Row, each: Gain) -> Arm | None:
    difference = each.difference
    if difference is None or difference.mean is None or difference.reason == "unstable":
        return None
    return Arm(row.method, difference.mean, difference.interval, difference.values, f"{row.method}: {gain(each)}")
