"""Writing files so that a reader sees the whole new one or the whole old one, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from kdbench.errors import StoreError

TEMPORARY = ".tmp-"


def write_atomic(
    path: Path, data: bytes | str, *, durable: bool = True, ready: Callable[[], object] = lambda: None
) -> None:
    """Replace ``path`` by ``data``: a temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: The file.
        data: Its new content.
        durable: Whether it must outlast a loss of power; what is kept elsewhere, too, need not, and is not synced.
        ready: Called when all is done but the rename; nothing is changed if it raises.

    Raises:
        StoreError: If it cannot be written (full disk, read-only); the old file is untouched.
    """
    payload = data.encode() if isinstance(data, str) else data
    with cannot_write(path), _beside(path, payload, durable=durable) as temporary:
        ready()
        temporary.replace(path)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Make ``path`` with ``data`` unless it exists; of several processes that try at once, one succeeds.

    Returns:
        Whether it was made; nothing is changed if not.

    Raises:
        StoreError: If it cannot be written.
    """
    with cannot_write(path), _beside(path, data, durable=True) as temporary:
        try:
            os.link(temporary, path)  # whole at once, and refused where there is something: on NFS, too
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: there, a kill in between may leave half of it
            return _created(path, data)
        return True


def unreadable(path: Path, error: OSError) -> StoreError:
    """Return how to say that a file or folder cannot be read."""
    return StoreError(f"{path}: cannot be read ({error.strerror})")


def _created(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _beside(path: Path, data: bytes, *, durable: bool) -> Iterator[Path]:
    """Write a temporary file in the same folder, to be given its name; it is gone afterwards, and the folder synced."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
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
        if writer.isdecimal() and not process_is_alive(int(writer)):
            path.unlink(missing_ok=True)


def process_is_alive(process: int) -> bool:
    """Return whether a process of this machine is there; one of somebody else counts."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's, or no number of a process: not ours to judge
    return True


def set_aside(path: Path, why: str = "corrupt", *, taken: Callable[[Path], bool] = Path.exists) -> Path:
    """Rename a file to ``NAME.WHY`` (never deleting it) and return its new path.

    Args:
        path: The file.
        why: What its name says of it.
        taken: Whether a path is another file's; then the name gets a number.
    """
    target = path.with_name(f"{path.name}.{why}")
    number = 1
    while taken(target):
        number += 1
        target = path.with_name(f"{path.name}.{why}{number}")
    return path.rename(target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
