"""The runs of one store as they lie there: finished, unfinished or damaged. Nothing is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import ConfigError, StoreError
from kdbench.leaderboard.checks import cell_problems
from kdbench.leaderboard.model import Cell
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.store import EPOCHS, SPEC, RunFolder
from kdbench.verification.epochs import read_epochs
from kdbench.verification.predictions import recount
from kdbench.verification.weights import weights_problem


@dataclass(frozen=True)
class Found:
    """One run of one store.

    Args:
        folder: Where it lies.
        spec: Its spec.
        record: Its record; None = it is not finished.
    """

    folder: RunFolder
    spec: RunSpec
    record: Record | None

    @property
    def failed(self) -> bool:
        """Whether it ended for outside reasons: a failure may be tried again, and then gives way to a result."""
        return self.record is not None and self.record.status == "infra_failed"

    @property
    def done(self) -> bool:
        """Whether it has a result."""
        return self.record is not None and not self.failed


@dataclass(frozen=True)
class Content:
    """What a store holds.

    Args:
        root: Its folder.
        runs: The runs that can be read, sorted by place.
        damaged: The others: why they cannot be used, by the place below the store.
    """

    root: Path
    runs: tuple[Found, ...]
    damaged: dict[str, str]


def read_store(root: Path, *, whole: bool = False) -> Content:
    """Return the runs under a folder; a missing folder holds none.

    Args:
        root: A store or a part of one.
        whole: Whether it must be a store, where every run lies at its id.
    """
    runs, damaged = [], {}
    for path in sorted(root.rglob(SPEC)):
        place = path.parent.relative_to(root)
        if any(part.startswith(".") for part in place.parts):
            continue  # a copy that a killed merge did not complete
        try:
            runs.append(_read(RunFolder(path.parent), place.as_posix(), whole=whole))
        except (ConfigError, StoreError) as error:
            damaged[place.as_posix()] = str(error)
    return Content(root, tuple(runs), damaged)


def _read(folder: RunFolder, place: str, *, whole: bool) -> Found:
    """Return a run.

    Raises:
        StoreError: If spec or record cannot be read.
        ConfigError: If they do not belong together, a file of a finished run is damaged, or one that would be copied is
            a link.
    """
    if not whole and (link := _link_in(folder.path)):
        raise ConfigError(
            f"{link}: a link to {link.readlink()}, perhaps no part of the run, and a merge copies plain files alone"
        )
    spec, record = folder.spec(), folder.peek()
    part_of_it = not whole and (place == "." or spec.run_id.endswith(f"/{place}"))
    if spec.run_id != place and not part_of_it:
        raise ConfigError(f"{folder.path / SPEC}: is the spec of run {spec.run_id}, which does not belong there")
    if record is not None:
        problems = [*cell_problems(Cell(spec, record, str(folder.path))), *_damages(folder, record)]
        if problems:
            raise ConfigError(problems[0])
    return Found(folder, spec, record)


def _link_in(folder: Path) -> Path | None:
    """Return the first link in a folder; none is followed."""
    for where, folders, names in os.walk(folder):
        for path in (Path(where) / name for name in sorted((*folders, *names))):
            if path.is_symlink():
                return path
    return None


def _damages(folder: RunFolder, record: Record) -> list[str]:
    """Return which files of a finished run are damaged, as an interrupted copy leaves them."""
    problems = recount(folder.path, record)[1] if record.accuracy is not None else []
    if (epochs := folder.path / EPOCHS).exists():
        try:
            read_epochs(epochs)
        except (OSError, ValueError) as error:
            problems.append(f"{epochs}: {error}")
    if problem := weights_problem(folder, record):
        problems.append(problem)
    return problems
