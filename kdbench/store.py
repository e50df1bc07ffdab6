"""The store of runs: one folder per run, one writer per folder, the folders are the truth."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.collector import collector_at_rest
from kdbench.epoch_table import epoch_table
from kdbench.errors import ConfigError, StoreError
from kdbench.files import cannot_write, set_aside, sweep_temporary, write_atomic
from kdbench.records import Corrupt, EpochReport, Record, parse_json
from kdbench.seal import sealed
from kdbench.spec import RunSpec

SPEC, RECORD, EPOCHS, EPOCH_TABLE = "spec.json", "record.json", "epochs.jsonl", "epochs.csv"
WEIGHTS, PREDICTIONS, CHECKPOINTS, LOCK = "student.safetensors", "predictions.npz", "checkpoint", "run.lock"
LOOK_SECONDS = 0.5  # somebody who only looks whether a lock is held has it no longer than that
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_RUN_ID = re.compile(rf"({_PART}/){{3}}{_PART}(@{_PART})?/seed[0-9]+")


class RunBusy(StoreError):
    """Another process is writing this run."""

    exit_code = 75


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Args:
        path: Its folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; it exists only while the run is unfinished."""
        return self.path / CHECKPOINTS

    def spec(self) -> RunSpec:
        """Return the stored spec."""
        return parse_json(RunSpec, self.path / SPEC)

    def record(self) -> Record | None:
        """Return the stored record, or None; a half-written or foreign one is set aside and counts as none.

        Raises:
            StoreError: If it cannot be read, or a newer kdbench wrote it: then it is somebody's result.
        """
        path = self.path / RECORD
        if not path.exists():
            return None
        try:
            return parse_json(Record, path)
        except Corrupt:
            set_aside(path)
            return None

    def peek(self) -> Record | None:
        """Return the stored record or None, changing nothing; raises StoreError if it cannot be read."""
        path = self.path / RECORD
        return parse_json(Record, path) if path.exists() else None

    def write_spec(self, spec: RunSpec) -> None:
        """Write the spec."""
        write_atomic(self.path / SPEC, spec.model_dump_json(indent=2) + "\n")

    def write_record(self, record: Record) -> None:
        """Write the record."""
        write_atomic(self.path / RECORD, sealed(record))

    def write_epochs(self, reports: Iterable[EpochReport]) -> None:
        """Write the epoch reports, one JSON object a line, and as a table with one line per value."""
        known = list(reports)
        write_atomic(self.path / EPOCHS, "".join(report.model_dump_json() + "\n" for report in known))
        write_atomic(self.path / EPOCH_TABLE, epoch_table(known))

    def held(self) -> bool:
        """Return whether a process holds the folder's lock; a file without a holder is what a killed one left."""
        if not (self.path / LOCK).exists():
            return False
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        (self.path / LOCK).unlink(missing_ok=True)
        lock.release()
        return False

    def tidy(self) -> None:
        """Remove what a writer left that was killed when this run was finished and others beside it were not."""
        if (self.path / LOCK).exists() and not self.held():
            with suppress(RunBusy), self.claimed():
                pass

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder's lock.

        Raises:
            RunBusy: If another process holds it.
        """
        with cannot_write(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, poll_interval=0.05)
            try:
                lock.acquire(timeout=LOOK_SECONDS)
            except Timeout as error:
                raise RunBusy(f"{self.path}: another process is training this run; wait for it or stop it") from error
        try:
            sweep_temporary(self.path)
            yield
        finally:
            (self.path / LOCK).unlink(missing_ok=True)
            lock.release()


class RunStore:
    """Runs under a root folder.

    Args:
        root: Folder; created when the first run is planned.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run.

        Raises:
            ConfigError: If it is no run id, or a link leads out of the store.
        """
        path = self.root / run_id
        if not _RUN_ID.fullmatch(run_id) or not path.resolve().is_relative_to(self.root.resolve()):
            raise ConfigError(f"run '{run_id}': not a run id (anchor/dataset/pair/method[@variant]/seedK)")
        return RunFolder(path)

    def check_writable(self) -> None:
        """Raise StoreError unless files can be made in the store."""
        with cannot_write(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()

    def register(self, specs: Iterable[RunSpec]) -> None:
        """Write the spec of every planned run, so that what was planned can be told from what was done.

        Raises:
            ConfigError: If a folder holds a run of another configuration; nothing is written then.
        """
        planned = [(spec, self.folder(spec.run_id)) for spec in specs]
        for spec, folder in planned:
            if (folder.path / SPEC).exists() and _asked(old := folder.spec()) != _asked(spec):
                raise ConfigError(_conflict(folder, old, spec))
        for spec, folder in planned:
            if not (folder.path / SPEC).exists():
                folder.write_spec(spec)

    def renew(self, specs: Iterable[RunSpec]) -> None:
        """Write again what may have changed since unfinished runs were planned: where data lies, a plugin's version."""
        for spec in specs:
            folder = self.folder(spec.run_id)
            if folder.spec() != spec:
                folder.write_spec(spec)

    @collector_at_rest()
    def runs(self) -> list[tuple[RunFolder, RunSpec]]:
        """Return all planned runs, sorted by id."""
        folders = []
        for place, inner, files in os.walk(self.root):
            # No part of a run id begins with a dot: whatever does is a copy that is not complete.
            inner[:] = [name for name in inner if not name.startswith(".")]
            if SPEC in files:
                folders.append(Path(place))
        folders.sort(key=lambda folder: folder.parts)
        return [(RunFolder(folder), parse_json(RunSpec, folder / SPEC)) for folder in folders]


def _asked(spec: RunSpec) -> tuple[str, tuple[str, ...]]:
    """Return what must agree for a run not to be made again; its hash leaves out how teachers are named."""
    return spec.config_sha256, spec.teacher_names


def _conflict(folder: RunFolder, old: RunSpec, new: RunSpec) -> str:
    detail = changes(old, new)
    return f"{folder.path}: holds a run of another configuration ({detail}); choose another --out"


def changes(old: RunSpec, new: RunSpec, now: str = "now") -> str:
    """Return in words what differs between the specs of one run, there (``old``) and ``now`` (``new``)."""
    a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
    changed = [key for key in a if a[key] != b.get(key)]
    if changed == ["options"]:
        keys = [k for k in {**a["options"], **b["options"]} if a["options"].get(k) != b["options"].get(k)]
        return ", ".join(f"{k} {a['options'].get(k)} there, {b['options'].get(k)} {now}" for k in keys)
    return "different " + ", ".join(changed)
