"""The leaderboard as CSV: one line per table row, for spreadsheets; numbers with full precision."""

from __future__ import annotations

import csv
import io

from kdbench.leaderboard.claims_text import claim_columns, claim_names
from kdbench.leaderboard.model import STATUSES, Gain, Leaderboard, Row, Table
from kdbench.leaderboard.text import plain
from kdbench.stats import Summary

Value = str | int | float | None
_FORMULA = ("=", "+", "-", "@")


def to_csv(board: Leaderboard) -> str:
    """Return the board as CSV; what is unknown is empty, and text a spreadsheet would run is quoted with ``'``."""
    names = list(dict.fromkeys(name for table in board.tables for name in table.baselines))
    by = claim_names(board)
    lines = [
        _line(table, row, names) | claim_columns(table.claims, row.method, by)
        for table in board.tables
        for row in table.rows
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_safe(name) for name in lines[0]] if lines else [])
    writer.writerows([_safe(value) for value in line.values()] for line in lines)
    return file.getvalue()


def _line(table: Table, row: Row, baselines: list[str]) -> dict[str, Value]:
    gains = {gain.baseline: gain for gain in row.gains}
    line: dict[str, Value] = {
        "anchor": table.anchor,
        "anchor_sha256": table.anchor_sha256,
        "dataset": table.dataset.label,
        "pair": table.pair,
        "division": table.division,
        "method": row.method,
        "method_version": row.method_version,
        "planned": row.planned,
        **{status: row.count(status) for status in STATUSES},
        **_summary("accuracy", row.scored),
        **_summary("ok_only", row.ok_only),
        "train_seconds": row.train_seconds,
        "deployed_parameters": "-".join(map(str, row.deployed_parameters)),
        "agreement_with_teacher": row.agreement,
        "deviations": "; ".join(f"{d.key}={d.value}" for d in row.deviations),
    }
    for name in baselines:
        line |= _gain(name, gains.get(name))
    return line


def _summary(name: str, summary: Summary | None) -> dict[str, Value]:
    return {
        f"{name}_n": summary.n if summary else 0,
        f"{name}_mean": summary.mean if summary else None,
        f"{name}_std": summary.std if summary else None,
    }


def _gain(name: str, gain: Gain | None) -> dict[str, Value]:
    difference = gain.difference if gain else None
    interval = difference.interval if difference else None
    return {
        f"vs_{name}_n": difference.n if difference else None,
        f"vs_{name}": difference.mean if difference else None,
        f"vs_{name}_low": interval.low if interval else None,
        f"vs_{name}_high": interval.high if interval else None,
        f"vs_{name}_no_interval": difference.reason if difference else "",
    }


def _safe(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
