"""Copying a run into a store: made complete beside its place, then renamed, so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import StoreError
from kdbench.files import TEMPORARY, cannot_write, place_folder, write_atomic
from kdbench.merging.reading import Found
from kdbench.storage.lease import is_lease_file
from kdbench.store import CHECKPOINTS, CONFLICT, LOCK, RECORD, RunBusy, RunStore

MERGING = ".merging"
_OLD = "old"  # marks the folder of a run that is giving way
_ASIDE = re.compile(r"\.(corrupt|failed)[0-9]*$")  # how kdbench.files.set_aside ends a name here


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


def restore(root: Path) -> None:
    """Put back the runs of a store that a merge had taken out of their places when it was killed, without new ones yet.

    Raises:
        RunBusy: If another merge is at the store.
        StoreError: If one cannot be renamed.
    """
    hidden = f"{TEMPORARY}{_OLD}-"
    places = {old: old.with_name(old.name.removeprefix(hidden)) for old in root.glob(f"*/*/*/*/{hidden}*")}
    if lost := [old for old, place in places.items() if not place.exists()]:
        with one_merge(root):
            for old in lost:
                if old.exists() and not places[old].exists():  # the merge that had hidden it may have gone on meanwhile
                    with cannot_write(old):
                        for name in [path.name for path in old.iterdir()]:
                            if name == LOCK or is_lease_file(name):  # that merge's own claim
                                (old / name).unlink()
                    place_folder(old, places[old])


def copy_run(run: Found, store: RunStore) -> Path:
    """Copy a run into a store and return its new folder; what is unfinished or failed there gives way.

    A finished run comes without checkpoints. What nobody deletes of a run that gives way stays: a failure's record, as
    ``record.json.failed``, and what was set aside or contradicts it.

    Raises:
        StoreError: If a file cannot be read or written; the store is as it was before this run.
        RunBusy: If another process is training it there.
    """
    target = store.folder(run.spec.run_id)
    stage = _empty(target.path, "new")
    try:
        for file in _files(run):
            write_atomic(stage / file.relative_to(run.folder.path), _content(file))
        if target.path.exists():
            with target.claimed():
                for giving_way in (_beside(target.path, _OLD), target.path):  # one hidden by a kill was begun anew
                    _keep(giving_way, stage)
                _exchange(target.path, stage)
        else:
            place_folder(stage, target.path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target.path


def _exchange(target: Path, stage: Path) -> None:
    """Put a complete folder into the place of another one, which is back there if that cannot be done."""
    old = _empty(target, _OLD)
    place_folder(target, old)
    try:
        place_folder(stage, target)
    finally:
        if not target.exists():
            place_folder(old, target)
    _empty(target, _OLD)


def _keep(target: Path, stage: Path) -> None:
    """Copy into the stage what a run that gives way has and nobody deletes: evidence, and the record of its failure."""
    for file in sorted(target.rglob("*")):
        kept = file.name.startswith(CONFLICT) or _ASIDE.search(file.name)
        if kept and file.is_file() and not file.is_symlink():
            _add(stage / file.relative_to(target), _content(file))
    if (record := target / RECORD).exists():
        _add(stage / f"{RECORD}.failed", _content(record))


def _add(path: Path, data: bytes) -> None:
    """Write a file under a name that nothing else has, numbered as by ``set_aside``, unless its bytes are there."""
    number, free = 1, path
    while free.exists():
        if free.read_bytes() == data:
            return
        number += 1
        free = path.with_name(f"{path.name}{number}")
    write_atomic(free, data)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StoreError(f"{file}: cannot be read ({error.strerror}); merge again when it can") from error


def _files(run: Found) -> Iterator[Path]:
    """Yield what is copied: all files but locks and half-written ones, and checkpoints only where they are needed.

    Links are none of them: a run with one was refused when it was read.
    """
    for where, folders, names in os.walk(run.folder.path):
        folders[:] = [name for name in folders if name != CHECKPOINTS or run.record is None]
        for path in (Path(where) / name for name in sorted(names)):
            own = path.name == LOCK or is_lease_file(path.name)
            if not own and not path.name.startswith(TEMPORARY) and path.is_file() and not path.is_symlink():
                yield path


def _empty(target: Path, word: str) -> Path:
    """Return the name of a folder beside a run's, free of what a killed merge left there.

    It begins with a dot, so that nobody takes it for a run.
    """
    place = _beside(target, word)
    shutil.rmtree(place, ignore_errors=True)
    return place


def _beside(target: Path, word: str) -> Path:
    return target.with_name(f"{TEMPORARY}{word}-{target.name}")
