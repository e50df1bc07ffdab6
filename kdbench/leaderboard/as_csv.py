"""The leaderboard as CSV: one line per table row, for spreadsheets; numbers with full precision."""

from __future__ import annotations

import csv
import io

from kdbench.leaderboard.claims_text import claim_columns, claim_names
from kdbench.leaderboard.columns import Value, groups
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.text import plain

_FORMULA = ("=", "+", "-", "@")
Line = tuple[dict[str, Value], dict[str, Value]]  # the fields every board has, and those that depend on the board


def to_csv(board: Leaderboard) -> str:
    """Return the board as CSV; what is unknown is empty, and text a spreadsheet would run is quoted with ``'``."""
    by = claim_names(board)
    lines = [_line(table, row, by) for table in board.tables for row in table.rows]
    names = list(dict.fromkeys(name for part in (0, 1) for line in lines for name in line[part]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_safe(name) for name in names])
    writer.writerows([_safe((fixed | varying).get(name)) for name in names] for fixed, varying in lines)
    return file.getvalue()


def _line(table: Table, row: Row, sources: list[str]) -> Line:
    fixed: dict[str, Value] = {
        "anchor": table.anchor,
        "anchor_sha256": table.anchor_sha256,
        "dataset": table.dataset.label,
        "pair": table.pair,
        "division": table.division,
    }
    varying: dict[str, Value] = {}
    for group in groups(table):
        (varying if group.varies else fixed).update(group.fields(row))
    return fixed, varying | claim_columns(table.claims, row.method, sources)


def _safe(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
