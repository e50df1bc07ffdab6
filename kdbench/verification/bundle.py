"""A published board as it lies on disk, read without following a link, writing a byte or trusting a file."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import ConfigError, StoreError
from kdbench.leaderboard.manifest import MANIFEST, Manifest
from kdbench.leaderboard.model import Cell
from kdbench.leaderboard.publishing import FILES, FOLDER, is_published
from kdbench.leaderboard.writing import FORMATS, NAME, file_name
from kdbench.records import Record, parse_json
from kdbench.spec import RunSpec
from kdbench.store import RECORD, SPEC, RunFolder
from kdbench.verification.report import Check, counted


@dataclass(frozen=True)
class Run:
    """One published run that can be read.

    Args:
        path: Its folder.
        place: Where it lies below ``runs/``, with ``/``.
        spec: Its spec.
        record: Its record; None = it was planned and has not ended.
    """

    path: Path
    place: str
    spec: RunSpec
    record: Record | None

    @property
    def cell(self) -> Cell:
        """The run as the tables take it."""
        conflicts = tuple(path.name for path in RunFolder(self.path).conflicts())
        return Cell(self.spec, self.record, str(self.path), conflicts=conflicts)


@dataclass(frozen=True)
class Bundle:
    """A published board.

    Args:
        root: Its folder.
        files: Every plain file, by its path below the folder, with ``/``.
        strange: Everything else that is no folder (links, pipes): path and what it is.
        manifest: What its manifest says; None = there is none, or none that can be read.
        flaws: What is wrong with the manifest itself.
    """

    root: Path
    files: dict[str, Path]
    strange: dict[str, str]
    manifest: Manifest | None
    flaws: tuple[str, ...] = ()

    @property
    def tables(self) -> dict[str, Path]:
        """The files of the tables by format; one that this kdbench does not know is called by its ending."""
        kinds = {file_name(kind): kind for kind in FORMATS}
        names = [name for name in self.files if name.startswith(f"{NAME}.") and "/" not in name]
        return {kinds.get(name, name.removeprefix(f"{NAME}.")): self.files[name] for name in sorted(names)}

    @property
    def run_folders(self) -> list[str]:
        """The folders with a spec, by their path below the board's folder, sorted."""
        names = [name for name in self.files if name.startswith(f"{FOLDER}/") and name.endswith(f"/{SPEC}")]
        return sorted(name.rpartition("/")[0] for name in names)


def open_bundle(root: Path) -> Bundle:
    """Return what lies in the folder of a published board.

    Raises:
        ConfigError: If it is no such folder.
        StoreError: If a folder cannot be listed.
    """
    if not (root / FOLDER).is_dir():
        raise ConfigError(
            f"{root}: not a published board: it has no folder '{FOLDER}'; publish one with kdbench leaderboard RUNS "
            f"--out {root} --records"
        )
    files, strange = _listed(root)
    manifest: Manifest | None = None
    flaws: tuple[str, ...] = ()
    if MANIFEST in files:
        try:
            manifest = parse_json(Manifest, files[MANIFEST])
        except StoreError as error:
            flaws = (f"{error}; bring back the published manifest",)
    return Bundle(root, files, strange, manifest, flaws)


def _listed(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return all plain files below a folder, and what is neither file nor folder; links are not followed."""
    files: dict[str, Path] = {}
    strange: dict[str, str] = {}

    def fail(error: OSError) -> None:
        raise StoreError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for where, folders, names in os.walk(root, onerror=fail):
        for path in (Path(where) / name for name in (*names, *folders)):
            mode = path.lstat().st_mode
            name = path.relative_to(root).as_posix()
            if stat.S_ISREG(mode):
                files[name] = path
            elif stat.S_ISLNK(mode):
                strange[name] = f"a link to {path.readlink()}"
            elif not stat.S_ISDIR(mode):
                strange[name] = "no plain file"
    return dict(sorted(files.items())), dict(sorted(strange.items()))


def read_runs(bundle: Bundle) -> tuple[list[Run], Check]:
    """Return the published runs that can be read, and the check that nothing else lies among them."""
    folders = bundle.run_folders
    runs: list[Run] = []
    problems = [
        f"{bundle.root / name}: {kind}; a board consists of plain files: put the file itself there"
        for name, kind in bundle.strange.items()
    ]
    for folder in folders:
        try:
            runs.append(_run(bundle, folder))
        except StoreError as error:
            problems.append(f"{error}; bring back the published file, or publish the board again without this run")
    for name in bundle.files:
        folder, _, file = name.rpartition("/")
        if name.startswith(f"{FOLDER}/") and (folder not in folders or not is_published(file)):
            wanted = f"a run has {SPEC} and {', '.join(FILES[1:])}, nothing else"
            problems.append(
                f"{bundle.root / name}: belongs to no run; {wanted}: remove it, or bring back what is missing"
            )
    problems += [problem for run in runs for problem in _misplaced(run)]
    ended = sum(run.record is not None for run in runs)
    said = f"{counted(len(folders), 'run')} planned, {ended} with a record"
    if not folders:
        problems.append(f"{bundle.root / FOLDER}: no runs there; publish the board again with --records")
    return runs, Check("runs", said, problems)


def _run(bundle: Bundle, folder: str) -> Run:
    spec = parse_json(RunSpec, bundle.files[f"{folder}/{SPEC}"])
    record = bundle.files.get(f"{folder}/{RECORD}")
    found = parse_json(Record, record) if record else None
    return Run(bundle.root / folder, folder.removeprefix(f"{FOLDER}/"), spec, found)


def _misplaced(run: Run) -> list[str]:
    if run.place == run.spec.run_id:
        return []
    return [
        f"{run.path / SPEC}: is the spec of run {run.spec.run_id}, expected is {run.place}, where it lies; a run "
        "keeps its place: move it back, or remove the copy"
    ]
