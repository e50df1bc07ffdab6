"""The published tables against those that the records give: every byte, but the tenth digit of JSON's numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from kdbench import __version__
from kdbench.errors import ConfigError, ProblemList, StoreError
from kdbench.leaderboard.answers import Answers as Bits
from kdbench.leaderboard.build import build
from kdbench.leaderboard.checks import group_by
from kdbench.leaderboard.curves import read_curve
from kdbench.leaderboard.model import Cell
from kdbench.leaderboard.publishing import FOLDER
from kdbench.leaderboard.writing import CURVES, FORMATS, NAME
from kdbench.records import parse_json
from kdbench.store import EPOCHS
from kdbench.verification.bundle import Bundle, Run
from kdbench.verification.predictions import Answers
from kdbench.verification.report import Check, counted

CLOSE = 1e-9  # of a number: JSON has ten digits, and an edit that anybody could want to make is larger
# One with a fraction that stands alone: no version.
_NUMBER = re.compile(rb"(?<=[\[ -])([0-9]+\.[0-9]+(?:e[-+]?[0-9]+)?)(?=[],}\n])")


class _Shown(BaseModel):
    """The runs of a row that a published JSON board shows."""

    run_id: str
    config_sha256: str


class _Row(BaseModel):
    runs: list[_Shown]


class _Table(BaseModel):
    baselines: list[str]
    absent_baselines: list[str]
    rows: list[_Row]


class Board(BaseModel):
    """As much of a published JSON board as is needed to build it again, and to say which runs are gone."""

    tables: list[_Table]


def check_tables(bundle: Bundle, runs: Sequence[Run], answers: Mapping[str, Answers], *, whole: bool) -> Check:
    """Return whether every published table is what the records say.

    Args:
        bundle: The published board.
        runs: Its runs.
        answers: What they said about the test images, by place.
        whole: Whether these are all of them; tables are not compared where some cannot be read.
    """
    formats = ", ".join(bundle.tables) or "none"
    if not bundle.tables:
        problem = f"{bundle.root}: no {NAME}.{{{','.join(FORMATS)}}} there; publish the board again"
        return Check("tables", formats, [problem])
    if not whole:
        return Check("tables", f"{formats}: not compared, since not every run can be read")
    problems: list[str] = []
    board = _published(bundle, problems)
    problems += _gone(bundle, runs, board)
    try:
        baselines = baselines_of(bundle, board)
        rebuilt = build(_cells(bundle, runs), baselines, answers=_reader(runs, answers))
    except ProblemList as error:
        return Check("tables", f"{formats}: cannot be built from the records", [*problems, *error.problems])
    except (ConfigError, StoreError) as error:
        return Check("tables", f"{formats}: cannot be built from the records", [*problems, str(error)])
    for kind, path in bundle.tables.items():
        if kind not in FORMATS:
            problems.append(
                f"{path}: this kdbench writes {', '.join(FORMATS)}, no '{kind}'; remove it or upgrade kdbench"
            )
        elif difference := _difference(path, FORMATS[kind](rebuilt).encode(), rounded=kind == "json"):
            problems.append(f"{path}: {difference}; {_remedy(bundle)}")
    said = f"{formats} built again from {counted(len(runs), 'run')}, gains over {', '.join(baselines) or 'nothing'}"
    return Check("tables", said, problems)


def _reader(runs: Sequence[Run], answers: Mapping[str, Answers]) -> Callable[[Cell], Bits | None]:
    """Return which images each run had right, as boards take it, from what has been read already."""
    known = {str(run.path): answers.get(run.place) for run in runs}

    def read(cell: Cell) -> Bits | None:
        said = known.get(cell.path) if cell.status == "ok" else None
        return Bits(np.packbits(said.correct), len(said.correct)) if said else None

    return read


def _cells(bundle: Bundle, runs: Sequence[Run]) -> list[Cell]:
    """Return the runs as the published formats take them, with their curves where one shows those."""
    if not set(CURVES) & bundle.tables.keys():
        return [run.cell for run in runs]
    with_curve = [
        run.record is not None and run.record.status == "ok" and f"{FOLDER}/{run.place}/{EPOCHS}" in bundle.files
        for run in runs
    ]
    return [
        replace(run.cell, curve=read_curve(run.path)) if shown else run.cell
        for run, shown in zip(runs, with_curve, strict=True)
    ]


def baselines_of(bundle: Bundle, board: Board | None) -> tuple[str, ...]:
    """Return over which methods the board shows gains: as published, else as kdbench alone would have it.

    They are no matter of which plugins are installed here.
    """
    if bundle.manifest is not None:
        return bundle.manifest.baselines
    if board is not None and board.tables:
        order: TopologicalSorter[str] = TopologicalSorter()
        for names in (names for table in board.tables for names in (table.baselines, table.absent_baselines)):
            for name in names:
                order.add(name)
            for before, after in pairwise(names):
                order.add(after, before)
        try:
            return tuple(order.static_order())
        except CycleError:
            pass  # nobody's board; the comparison says so
    from kdbench.registry import GROUP, load  # imports torch, which nothing else here needs

    methods = load(without=[entry.name for entry in metadata.entry_points(group=GROUP)]).methods.values()
    return tuple(m.name for m in sorted((m for m in methods if m.baseline), key=lambda m: m.uses_teacher))


def _published(bundle: Bundle, problems: list[str]) -> Board | None:
    path = bundle.tables.get("json")
    if path is None:
        return None
    try:
        return parse_json(Board, path)
    except StoreError as error:
        problems.append(f"{error}; bring back the published file, or publish the board again")
        return None


def _gone(bundle: Bundle, runs: Sequence[Run], board: Board | None) -> Iterator[str]:
    """Name the runs that stand in the JSON board and lie nowhere, and those of which it knows nothing."""
    if board is None:
        return
    shown = {run.run_id: run.config_sha256 for table in board.tables for row in table.rows for run in row.runs}
    there = group_by((run.cell for run in runs), lambda cell: cell.spec.run_id)
    for run_id in sorted(shown.keys() - there.keys()):
        yield (
            f"{bundle.tables['json']}: shows run {run_id}, which is not in {bundle.root / 'runs'}; bring the run back, "
            "or publish the board again"
        )
    for run_id in sorted(there.keys() - shown.keys()):
        yield (
            f"{there[run_id][0].label}: is not in {bundle.tables['json']}, which should have every run; remove it, or "
            "publish the board again"
        )


def _difference(path: Path, expected: bytes, *, rounded: bool) -> str:
    """Return where a file is not what is expected; empty if it is, ``rounded`` numbers aside."""
    found = path.read_bytes()
    if found == expected:
        return ""
    here, there = found.splitlines(keepends=True), expected.splitlines(keepends=True)
    for number, (a, b) in enumerate(zip(here, there, strict=False), start=1):
        if a != b and not (rounded and _same_numbers(a, b)):
            return f"line {number} is {_shown(a, b)}, the records give {_shown(b, a)}"
    if len(here) == len(there):
        return ""
    return f"has {counted(len(here), 'line')}, the records give {len(there)}"


def _same_numbers(line: bytes, other: bytes) -> bool:
    """Return whether lines differ only in digits that other releases of NumPy and SciPy may round otherwise."""
    here, there = _NUMBER.split(line), _NUMBER.split(other)  # the numbers are every second part
    if here[::2] != there[::2]:
        return False
    return all(math.isclose(float(a), float(b), rel_tol=CLOSE) for a, b in zip(here[1::2], there[1::2], strict=True))


def _shown(line: bytes, other: bytes) -> str:
    """Return the part of a line around the first difference to another one, in quotes."""
    text, against = line.decode(errors="replace").rstrip("\n"), other.decode(errors="replace").rstrip("\n")
    place = next(
        (i for i, (a, b) in enumerate(zip(text, against, strict=False)) if a != b), min(len(text), len(against))
    )
    start, end = max(0, place - 30), place + 30
    return f"'{'..' if start else ''}{text[start:end].strip()}{'..' if end < len(text) else ''}'"


def _remedy(bundle: Bundle) -> str:
    by = bundle.manifest.kdbench_version if bundle.manifest else __version__
    if by != __version__:
        return f"it was written by kdbench {by}, this is {__version__}: verify it with that one"
    return "bring back the published file, or publish the board again"
