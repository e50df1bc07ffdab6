"""Refusals: what may not stand in one table, or one row, is named together with the runs to blame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from kdbench.leaderboard.hashing import hash_of_row
from kdbench.leaderboard.model import Cell
from kdbench.records import Record
from kdbench.spec import RunSpec

SHOWN = 3
K = TypeVar("K")


def group_by(cells: Iterable[Cell], key: Callable[[Cell], K]) -> dict[K, list[Cell]]:
    """Return the cells of each value of ``key``."""
    groups: dict[K, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def cell_problems(cell: Cell) -> list[str]:
    """Return why a record cannot be scored, or does not belong to its spec."""
    record = cell.record
    if record is None:
        return []
    said, planned = _facts(record), _facts(cell.spec)
    facts = [(key, said[key], planned[key]) for key in planned]
    for key, there, here in (*facts, *_hashes(cell, record)):
        if there != here:
            was, now = _short(_text(there)), _short(_text(here))
            return [
                f"{cell.label}: {key} is {was} in the record and {now} in the spec beside it; "
                "restore the file that was changed, or remove the run and start it again"
            ]
    if record.status == "ok":
        score = None if record.accuracy is None else record.accuracy.last
        if score is None or not 0 <= score <= 100:
            return [f"{cell.label}: status ok with accuracy {score}; allowed is 0 to 100; remove it and run it again"]
    if record.status == "diverged" and record.classes < 1:
        return [f"{cell.label}: {record.classes} classes; a diverged run is scored at 100 / classes; run it again"]
    return []


def anchor_problems(groups: Mapping[tuple[str, str, str], Sequence[Cell]]) -> list[str]:
    """Return why groups under one anchor label are not of one protocol; differences within a group are its own.

    Args:
        groups: Cells of each anchor label, dataset label and pair.
    """
    found = []
    for label in sorted({key[0] for key in groups}):
        named = [_anchors(cells) for key, cells in groups.items() if key[0] == label]
        values = [value for group in named if len({sha for _, sha in group}) == 1 for value in group]
        remedy = "pairs of different protocols cannot be in one board: leave one group out, or run it again"
        found.append(_two(label, "anchors of one name (sha256)", values, remedy))
    return [problem for problem in found if problem]


def _anchors(cells: Iterable[Cell]) -> list[tuple[Cell, str]]:
    return [(cell, cell.anchor_sha256) for cell in cells]


def group_problems(where: str, cells: Sequence[Cell]) -> list[str]:
    """Return why these cells of one anchor label, dataset label and pair cannot be compared."""
    found = [
        _two(
            where,
            "anchors of one name (sha256)",
            _anchors(cells),
            "only runs of one protocol are comparable: give the changed anchor a new name or version and run it again",
        ),
        _two(
            where,
            "datasets of one name (fingerprint)",
            [(cell, cell.spec.dataset.fingerprint) for cell in cells],
            "give the datasets different names, or leave one group out",
        ),
        _two(
            where,
            "backbones trained under one pair name",
            [(cell, cell.spec.student) for cell in cells],
            "give the pairs different names, or leave one group out",
        ),
        _two(
            where,
            "teachers for one table (sha256)",
            [
                (cell, " + ".join(teacher.sha256 for teacher in cell.record.teachers))
                for cell in cells
                if cell.record and cell.record.teachers
            ],
            "all distilled methods need the same teacher: run one group again with the other's, or leave it out",
        ),
        _devices_problem(where, cells),
    ]
    return [problem for problem in found if problem]


def _devices_problem(where: str, cells: Sequence[Cell]) -> str | None:
    """Return why runs cannot be compared in which BatchNorm had to do with another share of the batch."""
    local = [cell for cell in cells if cell.spec.anchor.step.batch_norm == "local"]
    return _two(
        where,
        "numbers of devices per run under step.batch_norm local",
        [(cell, str(cell.record.environment.world_size)) for cell in local if cell.record],
        "their BatchNorms saw batches of other sizes: run one group again on as many devices, or leave it out",
    )


def row_problems(where: str, cells: Sequence[Cell]) -> list[str]:
    """Return why these cells of one method cannot be one row."""
    where = f"{where}, method '{cells[0].spec.row}'"
    remedy = "a row holds one configuration: leave one group out or put it in a leaderboard of its own"
    problems = []
    if len({cell.of_row for cell in cells}) > 1:
        found = [
            _two(where, "method versions", [(cell, str(cell.spec.method_version)) for cell in cells], remedy),
            _two(where, "sets of options", [(cell, _text(cell.spec.options)) for cell in cells], remedy),
            _two(where, "sets of deviations", [(cell, _text(cell.spec.deviations)) for cell in cells], remedy),
        ]
        problems = [problem for problem in found if problem]
        if not problems:
            # Whatever else is hashed; the checks above only say it better.
            seedless = [(cell, hash_of_row(cell.of_row, 0)) for cell in cells]
            rest = _two(where, "configurations (sha256 without the seed)", seedless, remedy)
            problems = [rest] if rest else []
    for seed, same in group_by(cells, lambda cell: cell.spec.seed).items():
        if len(same) > 1:
            problems.append(
                f"{where}: seed {seed} occurs {len(same)} times ({_names(same)}); a seed may be in a row once; "
                "leave out all but one"
            )
    return problems


def _facts(side: RunSpec | Record) -> dict[str, object]:
    """Return what a spec and its record both say."""
    return {
        "method": side.method,
        "method_version": side.method_version,
        "variant": side.variant,
        "options": side.options,
        "deviations": side.deviations,
        "pair": side.pair,
        "seed": side.seed,
        "dataset.fingerprint": (side.dataset if isinstance(side, RunSpec) else side.dataset_ref).fingerprint,
        "run_id": side.run_id,
    }


def _hashes(cell: Cell, record: Record) -> Iterator[tuple[str, str, str]]:
    yield "anchor_sha256", record.anchor_sha256, cell.anchor_sha256
    yield "config_sha256", record.config_sha256, cell.config_sha256


def _two(where: str, what: str, values: Iterable[tuple[Cell, str]], remedy: str) -> str | None:
    """Return a message if the cells do not all have the same value."""
    groups: dict[str, list[Cell]] = {}
    for cell, value in values:
        groups.setdefault(value, []).append(cell)
    if len(groups) < 2:
        return None
    sides = "; ".join(f"{_short(value)} in {_names(groups[value])}" for value in sorted(groups))
    return f"{where}: {len(groups)} {what}: {sides}. {remedy[0].upper()}{remedy[1:]}"


def _names(cells: Sequence[Cell]) -> str:
    names = sorted(cell.label for cell in cells)
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _short(value: str) -> str:
    """Return hashes as a prefix, everything else whole."""
    parts = value.split(" + ")
    hashes = all(len(part) == 64 and not set(part) - set("0123456789abcdef") for part in parts)
    return " + ".join(part[:12] for part in parts) if hashes else value


def _text(value: object) -> str:
    """Return a fact as messages show it; texts as they are."""
    if isinstance(value, tuple):
        value = [deviation.model_dump(mode="json") for deviation in value]
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
