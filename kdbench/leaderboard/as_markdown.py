"""The leaderboard as Markdown: one table each, and under it everything a reader needs to judge it."""

from __future__ import annotations

from tabulate import tabulate

from kdbench.leaderboard.claims_text import claims_markdown
from kdbench.leaderboard.columns import Column, columns
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.notes import notes
from kdbench.leaderboard.overall_text import overview_markdown
from kdbench.leaderboard.text import escape


def to_markdown(board: Leaderboard) -> str:
    """Return the board in GitHub's Markdown, ending in a newline."""
    sections = (_section(table) for table in board.tables)
    return "\n\n".join(["# Leaderboard", *sections, *map(overview_markdown, board.overviews)]) + "\n"


def _section(table: Table) -> str:
    footer = "\n".join(f"- {note}" for note in notes(table))
    return f"## {escape(table.title)}\n\n{_grid(table)}\n\n{footer}{claims_markdown(table.claims)}"


def _grid(table: Table) -> str:
    shown = columns(table)
    cells = [[_cell(column, row) for column in shown] for row in table.rows]
    align = ["right" if column.right else "left" for column in shown]
    heads = [escape(column.title) for column in shown]
    return tabulate(cells, heads, tablefmt="pipe", colalign=align, disable_numparse=True)


def _cell(column: Column, row: Row) -> str:
    text = escape(column.text(row)) if column.foreign else column.text(row)
    return f"**{text}**" if column.strong(row) else text
