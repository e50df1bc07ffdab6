"""The store of runs: one folder per run, one writer per folder, the folders are the truth."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from kdbench.collector import collector_at_rest
from kdbench.epoch_table import epoch_table
from kdbench.errors import ConfigError
from kdbench.files import cannot_write, unreadable
from kdbench.records import Corrupt, EpochReport, Record, disagreements, parse_bytes, parse_json
from kdbench.seal import sealed
from kdbench.spec import RunSpec
from kdbench.storage.mirror import Mirror, own_mirror
from kdbench.storage.places import Url, Where
from kdbench.storage.shared_folder import LOCK as LOCK  # noqa: PLC0414 (part of what the store is known for)
from kdbench.storage.shared_folder import RunBusy as RunBusy  # noqa: PLC0414 (likewise)
from kdbench.storage.shared_folder import SharedFolder
from kdbench.storage.shelf import Shelf

SPEC, RECORD, EPOCHS, EPOCH_TABLE = "spec.json", "record.json", "epochs.jsonl", "epochs.csv"
WEIGHTS, PREDICTIONS, CHECKPOINTS = "student.safetensors", "predictions.npz", "checkpoint"
CONFLICT = "record.conflict-"  # how the names of results begin that contradict the record
_log = logging.getLogger(__name__)
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_RUN_ID = re.compile(rf"({_PART}/){{3}}{_PART}(@{_PART})?/seed[0-9]+")


class RunFolder(SharedFolder):
    """The files of one run."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; it exists only while the run is unfinished."""
        return self.path / CHECKPOINTS

    def spec(self) -> RunSpec:
        """Return the stored spec."""
        self.pull(SPEC)
        return parse_json(RunSpec, self.path / SPEC)

    def result(self) -> Record | None:
        """Return the stored record, or None; a damaged one counts as none and stays: the run's next writer moves it.

        Raises:
            StoreError: If it cannot be read, or another kdbench wrote it.
        """
        try:
            return self.peek()
        except Corrupt:
            return None

    def record(self) -> Record | None:
        """Return the stored record of a claimed run, or None; a half-written or foreign one is set aside as damaged.

        Raises:
            StoreError: If it cannot be read, or another kdbench wrote it: then it is somebody's result.
        """
        if not self.has(RECORD):
            return None
        try:
            return parse_json(Record, self.path / RECORD)
        except Corrupt:
            self.set_aside(RECORD)
            return None

    def peek(self) -> Record | None:
        """Return the stored record or None, changing nothing; raises StoreError if it cannot be read."""
        self.pull(RECORD)
        path = self.path / RECORD
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        return parse_bytes(Record, data, str(path))

    def write_spec(self, spec: RunSpec) -> None:
        """Write the spec."""
        self.write(SPEC, spec.model_dump_json(indent=2) + "\n")
        self.push()

    def write_record(self, record: Record, files: Mapping[str, bytes | str] | None = None) -> Record:
        """Write the result of the run, unless it has one.

        Equal runs end equally, so a second result that says something else means that one of the two is wrong. It is
        kept beside the first one, as ``record.conflict-*.json``, and the board says so.

        Args:
            record: The result.
            files: What belongs to it, by name; written before it.

        Returns:
            The record that stands.

        Raises:
            LeaseLost: If another process has taken the run over.
            StoreError: If it cannot be written.
        """
        self.confirm()
        data = sealed(record).encode()
        while (there := self.record()) is None:
            for name, content in (files or {}).items():
                self.write(name, content)
            self.push()
            if self.shelf.create(RECORD, data):
                self.pull(RECORD)
                self.uncancel()
                return record
        if differ := disagreements(there, record):
            aside = f"{CONFLICT}{hashlib.sha256(data).hexdigest()[:8]}.json"
            self.shelf.create(aside, data)
            _log.warning("%s: has a result already; another one is in %s (%s)", self.path, aside, "; ".join(differ))
        return there

    def conflicts(self) -> list[Path]:
        """Return the records that contradict the one that stands."""
        try:
            with os.scandir(self.path) as there:
                found = [one.name for one in there if one.name.startswith(CONFLICT) and one.name.endswith(".json")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(self.path, error) from error
        return [self.path / name for name in sorted(found)]

    def write_epochs(self, reports: Iterable[EpochReport]) -> None:
        """Write the epoch reports, one JSON object a line, and as a table with one line per value."""
        for name, content in epoch_files(reports).items():
            self.write(name, content)


class RunStore:
    """Runs under a root folder, or at a URL.

    Args:
        where: Which one; a folder is created when the first run is planned.
    """

    def __init__(self, where: Where) -> None:
        self.mirror: Mirror | None = None
        if isinstance(where, Url):
            self.mirror = own_mirror(where)
            self.root = self.mirror.root
        else:
            self.root = where

    def folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run.

        Raises:
            ConfigError: If it is no run id, or a link leads out of the store.
        """
        path = self.root / run_id
        if not _RUN_ID.fullmatch(run_id) or not path.resolve().is_relative_to(self._real_root):
            raise ConfigError(f"run '{run_id}': not a run id (anchor/dataset/pair/method[@variant]/seedK)")
        return RunFolder(path, self.mirror)

    def at(self, place: str) -> RunFolder:
        """Return a folder of the store by its path below it, with ``/``."""
        return RunFolder(self.root / place, self.mirror)

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()  # asked for with every folder of a run

    def check_writable(self) -> None:
        """Look whether runs can be made in the store.

        Raises:
            StoreError: If no file can be made.
            ConfigError: If a file at its URL can be created twice: two workers could claim the same run.
        """
        if self.mirror:
            _check_creates_once(self.mirror.shelf)
            return
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
            # Hashes are asked for only where something differs.
            if folder.has(SPEC) and (old := folder.spec()) != spec and _asked(old) != _asked(spec):
                raise ConfigError(_conflict(folder, old, spec))
        for spec, folder in planned:
            if not folder.has(SPEC):
                folder.write_spec(spec)

    def renew(self, specs: Iterable[RunSpec]) -> None:
        """Write again what may have changed since unfinished runs were planned: where data lies, a plugin's version."""
        for spec in specs:
            folder = self.folder(spec.run_id)
            if folder.spec() != spec:
                folder.write_spec(spec)

    @collector_at_rest()
    def runs(self) -> list[tuple[RunFolder, RunSpec]]:
        """Return all planned runs to be read, sorted by id; of what lies at a URL copies, without weights."""
        if self.mirror:
            self.mirror.refresh(_is_read)
        folders, below = [], len(str(self.root)) + 1
        for place, inner, files in os.walk(self.root):
            # No part of a run id begins with a dot: whatever does is a copy that is not complete.
            inner[:] = [name for name in inner if not name.startswith(".")]
            if SPEC in files:
                folders.append(Path(place))
                if _RUN_ID.fullmatch(place[below:].replace(os.sep, "/")):
                    inner.clear()  # no run is in another one; a spec in a wrong place hides none
        folders.sort(key=lambda folder: folder.parts)
        return [(RunFolder(folder), parse_json(RunSpec, folder / SPEC)) for folder in folders]


def _check_creates_once(shelf: Shelf) -> None:
    probe = f".probe-{secrets.token_hex(8)}"
    try:
        made = [shelf.create(probe, data) for data in (b"first", b"second")]
    finally:
        shelf.remove(probe)
    if made != [True, False]:
        raise ConfigError(
            f"{shelf.label}: a file that was created there twice was made {sum(made)} times; unless that is once, two "
            "workers could train the same run. Give a store that takes notice of If-None-Match, or a folder"
        )


def epoch_files(reports: Iterable[EpochReport]) -> dict[str, str]:
    """Return the files that tell of the epochs of a run, by name."""
    known = list(reports)
    lines = "".join(report.model_dump_json() + "\n" for report in known)
    return {EPOCHS: lines, EPOCH_TABLE: epoch_table(known)}


def _asked(spec: RunSpec) -> tuple[str, tuple[str, ...]]:
    """Return what must agree for a run not to be made again; its hash leaves out how teachers are named."""
    return spec.config_sha256, spec.teacher_names


def _is_read(name: str) -> bool:
    *folders, file = name.split("/")
    return CHECKPOINTS not in folders and file != WEIGHTS


def _conflict(folder: RunFolder, old: RunSpec, new: RunSpec) -> str:
    detail = changes(old, new)
    return f"{folder.shelf.label}: holds a run of another configuration ({detail}); choose another --out"


def changes(old: RunSpec, new: RunSpec, now: str = "now") -> str:
    """Return in words what differs between the specs of one run, there (``old``) and ``now`` (``new``)."""
    a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
    changed = [key for key in a if a[key] != b.get(key)]
    if changed == ["options"]:
        keys = [k for k in {**a["options"], **b["options"]} if a["options"].get(k) != b["options"].get(k)]
        return ", ".join(f"{k} {a['options'].get(k)} there, {b['options'].get(k)} {now}" for k in keys)
    return "different " + ", ".join(changed)
