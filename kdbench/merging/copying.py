"""Copying a run into a store: made complete beside its place, then renamed, so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import StoreError
from kdbench.files import TEMPORARY, cannot_write, place_folder, write_atomic
from kdbench.merging.reading import Found
from kdbench.storage.lease import is_lease_file
from kdbench.store import CHECKPOINTS, LOCK, RECORD, RunBusy, RunStore

MERGING = ".merging"


@contextlib.contextmanager
def one_merge(root: Path) -> Iterator[None]:
    """Hold the store for one merge at a time: it removes what a killed one left.

    Raises:
        RunBusy: If another one is at it.
    """
    with cannot_write(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / MERGING)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunBusy(f"{root}: another merge is writing to this store; wait for it or stop it") from error
    try:
        yield
    finally:
        (root / MERGING).unlink(missing_ok=True)
        lock.release()


def copy_run(run: Found, store: RunStore) -> Path:
    """Copy a run into a store and return its new folder; what is unfinished or failed there gives way.

    A finished run comes without checkpoints. The record of a failure that gives way is kept as ``record.json.failed``.

    Raises:
        StoreError: If a file cannot be read or written; the store is as it was before this run.
        RunBusy: If another process is training it there.
    """
    target = store.folder(run.spec.run_id)
    stage = _empty(target.path, "new")
    try:
        for file in _files(run):
            try:
                data = file.read_bytes()
            except OSError as error:
                raise StoreError(f"{file}: cannot be read ({error.strerror}); merge again when it can") from error
            write_atomic(stage / file.relative_to(run.folder.path), data)
        if target.path.exists():
            with target.claimed():
                if (old := target.path / RECORD).exists():
                    write_atomic(stage / f"{RECORD}.failed", old.read_bytes())
                place_folder(target.path, _empty(target.path, "old"))
                place_folder(stage, target.path)
        else:
            place_folder(stage, target.path)
        _empty(target.path, "old")
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target.path


def _files(run: Found) -> Iterator[Path]:
    """Yield what is copied: all files but locks and half-written ones, and checkpoints only where they are needed."""
    for where, folders, names in os.walk(run.folder.path):
        folders[:] = [name for name in folders if name != CHECKPOINTS or run.record is None]
        for path in (Path(where) / name for name in sorted(names)):
            own = path.name == LOCK or is_lease_file(path.name)
            if not own and not path.name.startswith(TEMPORARY) and path.is_file():
                yield path


def _empty(target: Path, word: str) -> Path:
    """Return the name of a folder beside a run's, free of what a killed merge left there.

    It begins with a dot, so that nobody takes it for a run.
    """
    place = target.with_name(f"{TEMPORARY}{word}-{target.name}")
    shutil.rmtree(place, ignore_errors=True)
    return place
