"""From folders of runs to cells."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.collector import collector_at_rest
from kdbench.leaderboard.curves import read_curve
from kdbench.leaderboard.model import Cell
from kdbench.spec import RunSpec
from kdbench.store import RunFolder


@collector_at_rest()
def read_cells(runs: Iterable[tuple[RunFolder, RunSpec]], *, curves: bool = False) -> list[Cell]:
    """Return one cell per planned run, changing nothing in the store.

    Args:
        runs: Folders with their specs, as a store lists them.
        curves: Whether to read the epochs of runs that are ok, too.

    Raises:
        StoreError: If a file cannot be read or is damaged.
    """
    cells = []
    for folder, spec in runs:
        record = folder.peek()
        shown = curves and record is not None and record.status == "ok"
        conflicts = tuple(path.name for path in folder.conflicts())
        cells.append(Cell(spec, record, str(folder.path), read_curve(folder.path) if shown else (), conflicts))
    return cells
