"""From records to the model: group, refuse what cannot be compared, summarise, pair by seed, sort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from kdbench.collector import collector_at_rest
from kdbench.errors import ConfigError, ProblemList
from kdbench.leaderboard.answers import Reader, answers_of
from kdbench.leaderboard.checks import anchor_problems, cell_problems, group_by, group_problems, row_problems
from kdbench.leaderboard.claim_files import ClaimFile, shipped_claims
from kdbench.leaderboard.claims import claimed
from kdbench.leaderboard.judging import judge
from kdbench.leaderboard.model import Cell, Division, Leaderboard, Row, Table
from kdbench.leaderboard.overall import mean_ranks, overviews
from kdbench.leaderboard.rows import make_row, with_gains
from kdbench.records import TeacherUsed

DIVISIONS: tuple[Division, ...] = ("closed", "open")
Group = tuple[str, str, str]  # anchor label, dataset label, pair


@collector_at_rest()
def build(
    cells: Iterable[Cell],
    baselines: Sequence[str],
    claims: Sequence[ClaimFile] | None = None,
    answers: Reader | None = None,
) -> Leaderboard:
    """Return the leaderboard of planned runs; the same cells in any order give the same one.

    Args:
        cells: Every planned run, finished or not.
        baselines: Methods over which gains are shown, in the order of their columns and rows.
        claims: Published accuracies to show beside ours; None = those that ship with kdbench.
        answers: Where to find which test images a run had right; None = not known, and then nobody can win.

    Raises:
        ConfigError: If there is no run, or some cannot stand in one table; it names all of them.

    Source:
        Statistics specification, sections 1 to 8.
    """
    groups = group_by(cells, _group)
    if not groups:
        raise ConfigError("leaderboard: no runs; give a folder that kdbench run has written")
    # Group by group first: so the rows of one are hashed together, and what they share is put into words once.
    of_groups = [problem for key, members in sorted(groups.items()) for problem in _problems("/".join(key), members)]
    if problems := anchor_problems(groups) + of_groups:
        raise ProblemList(problems)
    order = tuple(dict.fromkeys(baselines))
    known = tuple(shipped_claims() if claims is None else claims)
    tables = tuple(table for key in sorted(groups) for table in _tables(groups[key], order, known, answers))
    views = overviews(tables)
    return Leaderboard(tables, mean_ranks(tables) if len(views) == 1 else None, views)


def _group(cell: Cell) -> Group:
    return cell.spec.anchor.label, cell.spec.dataset.label, cell.spec.pair


def _problems(where: str, cells: Sequence[Cell]) -> list[str]:
    problems = [problem for cell in cells for problem in cell_problems(cell)]
    shared = group_problems(where, cells)
    if shared:
        return problems + shared  # rows of an incomparable table would only repeat it
    rows = group_by(cells, lambda cell: (cell.spec.row, cell.spec.division))
    return problems + [problem for _, members in sorted(rows.items()) for problem in row_problems(where, members)]


def _tables(
    cells: Sequence[Cell], baselines: tuple[str, ...], claims: tuple[ClaimFile, ...], reader: Reader | None
) -> list[Table]:
    """Return the tables of one group; rows of either division are held against the closed baselines."""
    by_division: dict[Division, list[Cell]] = {
        division: [cell for cell in cells if cell.spec.division == division] for division in DIVISIONS
    }
    rows = {division: _rows(members) for division, members in by_division.items()}
    answers = {division: answers_of(members, reader) for division, members in by_division.items()}
    references = {row.method: row for row in rows["closed"]}
    known = {name: references[name] for name in baselines if name in references}
    tables = []
    for division in DIVISIONS:
        if rows[division]:
            held = [with_gains(row, tuple(known.values())) for row in rows[division]]
            judged, judgement = judge(held, known, baselines, division, (answers[division], answers["closed"]))
            table = _table(by_division[division], division, judged, baselines, claims)
            tables.append(replace(table, judgement=judgement))
    return tables


def _rows(cells: Sequence[Cell]) -> list[Row]:
    return [make_row(members) for _, members in sorted(group_by(cells, lambda cell: cell.spec.row).items())]


def _table(
    cells: Sequence[Cell],
    division: Division,
    rows: Sequence[Row],
    baselines: tuple[str, ...],
    claims: tuple[ClaimFile, ...],
) -> Table:
    spec = min(cells, key=lambda cell: cell.spec.run_id).spec
    ordered = tuple(sorted(rows, key=lambda row: _place(row, baselines)))
    shown = tuple(gain.baseline for gain in rows[0].gains)
    return Table(
        anchor=spec.anchor.label,
        anchor_sha256=spec.anchor.sha256,
        epochs=spec.anchor.schedule.epochs,
        dataset=spec.dataset,
        pair=spec.pair,
        student_backbone=spec.student,
        teachers=_teachers(cells),
        division=division,
        baselines=shown,
        absent_baselines=tuple(name for name in baselines if name not in shown),
        rows=ordered,
        environment=_environment(cells),
        claims=claimed(cells, ordered, claims),
    )


def _place(row: Row, baselines: tuple[str, ...]) -> tuple[int, float, str]:
    """Return the sort key: baselines in their order, then by mean descending, unscored rows last."""
    place = baselines.index(row.method) if row.method in baselines else len(baselines)
    return place, float("inf") if row.scored is None else -row.scored.mean, row.method


def _teachers(cells: Sequence[Cell]) -> tuple[TeacherUsed, ...]:
    used = {(t.name, t.sha256, t.accuracy): t for cell in cells if cell.record for t in cell.record.teachers}
    return tuple(used[key] for key in sorted(used))


def _environment(cells: Sequence[Cell]) -> dict[str, tuple[str, ...]]:
    """Return the distinct values of what equal bits depend on, over all runs that left a record."""
    records = [cell.record for cell in cells if cell.record]
    said: dict[str, set[object]] = {
        key: {getattr(record.environment, key) for record in records}
        for key in ("machine", "device", "threads", "precision", "world_size", "torch", "python", "commit")
    }
    said["kdbench"] = {record.kdbench_version for record in records}
    return {key: tuple(sorted({str(value) for value in values} - {""})) for key, values in said.items()}
