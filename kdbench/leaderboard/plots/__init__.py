"""The pictures of a table: made here as SVG, so that the page needs neither network nor script to show them."""

from __future__ import annotations

from kdbench.leaderboard.model import Leaderboard, Table
from kdbench.leaderboard.plots.costs import cost_figures
from kdbench.leaderboard.plots.curves import curve_figures
from kdbench.leaderboard.plots.figure import Figure
from kdbench.leaderboard.plots.gains import gain_figures
from kdbench.leaderboard.plots.gap import gap_figures
from kdbench.leaderboard.plots.ranks import rank_figures

__all__ = ["Figure", "board_figures", "figures"]


def figures(table: Table) -> tuple[Figure, ...]:
    """Return every picture that a table's numbers allow."""
    return (*gain_figures(table), *gap_figures(table), *cost_figures(table), *curve_figures(table))


def board_figures(board: Leaderboard) -> tuple[Figure, ...]:
    """Return every picture of all tables together."""
    return rank_figures(board.ranks)
