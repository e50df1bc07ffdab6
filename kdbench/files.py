"""Writing files so that a reader sees the whole new one or the whole old one, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import StoreError

TEMPORARY = ".tmp-"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data``: a temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        StoreError: If it cannot be written (full disk, read-only); the old file is untouched.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    payload = data.encode() if isinstance(data, str) else data
    with cannot_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def cannot_write(path: Path) -> Iterator[None]:
    """Turn an OSError into one message that names the path and what to do."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "choose another folder"
        raise StoreError(f"{path}: cannot be written ({error.strerror or error}); {remedy} and start again") from error


def place_folder(folder: Path, target: Path) -> None:
    """Rename a complete folder to where it belongs, in the same file system; nothing may be there yet.

    Raises:
        StoreError: If it cannot be renamed; both places are untouched then.
    """
    with cannot_write(target):
        folder.rename(target)
        _sync_folder(target.parent)


def sweep_temporary(folder: Path) -> None:
    """Remove what killed writers left in a folder; the caller holds the folder's lock."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def sweep_dead(folder: Path) -> None:
    """Remove what killed writers left in a folder that has no lock: files of processes that are not there any more."""
    for path in folder.glob(f"{TEMPORARY}*"):
        writer = path.name.removeprefix(TEMPORARY).partition("-")[0]
        if writer.isdecimal() and not _alive(int(writer)):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's, or no number of a process: not ours to judge
    return True


def set_aside(path: Path, why: str = "corrupt") -> Path:
    """Rename a file to ``NAME.WHY`` (never deleting it) and return its new path."""
    target = path.with_name(f"{path.name}.{why}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{why}{number}")
    return path.rename(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
