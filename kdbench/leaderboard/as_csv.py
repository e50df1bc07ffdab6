"""The leaderboard as CSV: one line per table row, for spreadsheets; numbers have ten digits."""

from __future__ import annotations

import csv
import io

from kdbench.leaderboard.claims_text import claim_columns, claim_names
from kdbench.leaderboard.columns import Value, groups
from kdbench.leaderboard.json_text import settled
from kdbench.leaderboard.model import Leaderboard, Row, Table
from kdbench.leaderboard.text import plain

_FORMULA = ("=", "+", "-", "@")
Fields = dict[str, Value]
Line = tuple[Fields, Fields, Fields]  # those of every board, those that depend on its baselines, those on its claims


def to_csv(board: Leaderboard) -> str:
    """Return the board as CSV; what is unknown is empty, and text a spreadsheet would run is quoted with ``'``."""
    by = claim_names(board)
    lines = [_line(table, row, by) for table in board.tables for row in table.rows]
    names = list(dict.fromkeys(name for part in range(3) for line in lines for name in line[part]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_safe(name) for name in names])
    writer.writerows([_safe((a | b | c).get(name)) for name in names] for a, b, c in lines)
    return file.getvalue()


def _line(table: Table, row: Row, by: list[str]) -> Line:
    fixed: Fields = {
        "anchor": table.anchor,
        "anchor_sha256": table.anchor_sha256,
        "dataset": table.dataset.label,
        "pair": table.pair,
        "division": table.division,
    }
    varying: Fields = {}
    for group in groups(table):
        (varying if group.varies else fixed).update(group.fields(row))
    claimed: Fields = {**claim_columns(table.claims, row.method, by)}
    return fixed, varying, claimed


def _safe(value: Value) -> Value:
    if isinstance(value, float):
        return settled(value)
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
