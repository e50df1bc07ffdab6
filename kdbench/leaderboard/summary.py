"""The first sentences of a page: what was compared, and the most that its numbers support."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.leaderboard.judged_text import found, why
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.text import gain, number, ranges

NAMED = 4  # so many of a kind are named, more are counted


def compared(board: Leaderboard) -> str:
    """Return what was compared, in plain text."""
    tables = board.tables
    rows = [row for table in tables for row in table.rows]
    planned = sum(row.planned for row in rows)
    parts = (
        _counted("method", (row.method for row in rows)),
        _counted("pair", (table.pair for table in tables)),
        _counted("dataset", (table.dataset.label for table in tables)),
        _counted("protocol", (table.anchor for table in tables)),
    )
    seeds = ranges(seed for table in tables for seed in table.seeds)
    done = sum(row.count("ok") for row in rows)
    return f"{'; '.join(parts)}; seeds {seeds}. {done} of {planned} planned runs are ok."


def headline(table: Table) -> str:
    """Return the verdict alone, in plain text."""
    text = found(table)
    return f"{text[0].upper()}{text[1:]}"


def statement(table: Table) -> str:
    """Return what the verdict rests on, and the highest mean, which is only a description, in plain text."""
    scored = [row for row in table.rows if row.scored and not row.unstable]
    if not scored:
        return "No method has a stable result yet."
    best = max(scored, key=lambda row: (row.scored.mean if row.scored else 0.0, row.method))
    n = len(best.scores)
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    lead = f"Highest mean: {best.method}, {number(best.scored.mean if best.scored else None)} % over {seeds}"
    return f"{why(table)} {lead}{_over(best)}. Being first by mean is no win."


def _over(row: Row) -> str:
    held = [each for each in row.gains if each.difference is not None]
    return f"; {gain(held[-1])} points over {held[-1].baseline} (interval for this comparison alone)" if held else ""


def _counted(word: str, names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    plural = word if len(distinct) == 1 else f"{word}s"
    named = f" ({', '.join(distinct)})" if len(distinct) <= NAMED else ""
    return f"{len(distinct)} {plural}{named}"
