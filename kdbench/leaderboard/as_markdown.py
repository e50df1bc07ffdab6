"""The leaderboard as Markdown: one table each, and under it everything a reader needs to judge it."""

from __future__ import annotations

from tabulate import tabulate

from kdbench.leaderboard.claims_text import claims_markdown
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.notes import notes
from kdbench.leaderboard.text import accuracy, escape, finished, gain, number, parameters, seconds


def to_markdown(board: Leaderboard) -> str:
    """Return the board in GitHub's Markdown, ending in a newline."""
    return "\n\n".join(["# Leaderboard", *(_section(table) for table in board.tables)]) + "\n"


def _section(table: Table) -> str:
    title = f"## {escape(table.dataset.label)}, {escape(table.pair)}, {escape(table.anchor)}, {table.division} division"
    footer = "\n".join(f"- {note}" for note in notes(table))
    return f"{title}\n\n{_grid(table)}\n\n{footer}{claims_markdown(table.claims)}"


def _grid(table: Table) -> str:
    opened = table.division == "open"
    headers = [
        "method",
        "ok",
        "accuracy %",
        *(f"vs {escape(name)}" for name in table.baselines),
        "train s",
        "params",
        "agreement %",
        *(["deviations"] if opened else []),
    ]
    align = ["left", "left", *["right"] * (len(headers) - 2)]
    if opened:
        align[-1] = "left"
    cells = [_cells(row, opened=opened) for row in table.rows]
    return tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _cells(row: Row, *, opened: bool) -> list[str]:
    changed = [", ".join(f"{escape(d.key)}={escape(d.value)}" for d in row.deviations)]
    return [
        escape(row.method),
        finished(row),
        accuracy(row),
        *(gain(value) for value in row.gains),
        seconds(row.train_seconds),
        parameters(row.deployed_parameters),
        number(row.agreement, 1),
        *(changed if opened else []),
    ]
