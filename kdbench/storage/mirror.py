"""A local folder that stands for one at a URL: runs are worked on there by the code that works on any other folder."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

from kdbench.files import TEMPORARY, cannot_write, process_is_alive, write_atomic
from kdbench.storage.owner import namespace
from kdbench.storage.places import Url, Where, scratch
from kdbench.storage.shelf import Shelf
from kdbench.storage.url_shelf import shelf_at

Stamp = tuple[int, int]  # size and time of the last change of a local file


class Mirror:
    """A local folder and the one it stands for. Names are paths below both, with ``/``.

    Args:
        shelf: The folder at the URL.
        root: The local one.
    """

    def __init__(self, shelf: Shelf, root: Path) -> None:
        self.shelf, self.root = shelf, root
        self._equal: dict[str, Stamp] = {}  # files that are there as they are here, and how they are here
        self._versions: dict[str, str] = {}  # of them, those that were listed

    def place_of(self, path: Path) -> str:
        """Return the name of a local path."""
        return path.relative_to(self.root).as_posix()

    def pull(self, *names: str) -> None:
        """Bring files here; those that are not there are removed here."""
        found = self.shelf.read_all(list(names))
        for name in names:
            if name in found:
                write_atomic(self.root / name, found[name], durable=False)
                self._equal[name] = _stamp(self.root / name)
            else:
                (self.root / name).unlink(missing_ok=True)
                self._equal.pop(name, None)

    def pull_folder(self, folder: str, wanted: Callable[[str], bool]) -> None:
        """Bring a folder here as it is there, with the files whose names, below it, are ``wanted``."""
        self.forget(folder)
        names = [f"{folder}/{name}" for name in self.shelf.at(folder).find() if wanted(name)]
        self.pull(*names)

    def refresh(self, wanted: Callable[[str], bool]) -> list[str]:
        """Bring here what is wanted and new or changed there, and return all its names; what went there goes here."""
        listed = {name: version for name, version in self.shelf.find().items() if wanted(name)}
        gone = [name for name in self._versions if name not in listed]
        changed = [name for name in listed if self._versions.get(name) != listed[name] or name not in self._equal]
        self.pull(*gone, *changed)
        self._versions = listed
        return sorted(listed)

    def push(self, folder: str, keep: Iterable[str] = (), ready: Callable[[], object] = lambda: None) -> None:
        """Bring there what is new or changed here in a folder, then remove there what was removed here.

        Args:
            folder: Which one.
            keep: Names below it that are never removed there.
            ready: Called before each change; what it raises ends the push.
        """
        here = {self.place_of(path) for path in (self.root / folder).rglob("*") if _is_file(path)}
        for name in sorted(here):
            if self._equal.get(name) != _stamp(self.root / name):
                ready()
                self.push_file(name)
        gone = {name for name in self._equal if name.startswith(f"{folder}/")} - here
        for name in gone - {f"{folder}/{name}" for name in keep}:
            ready()
            self.push_file(name)

    def push_file(self, name: str) -> None:
        """Bring a file there, or remove it there if it is not here."""
        self._versions.pop(name, None)
        if (self.root / name).exists():
            stamp = _stamp(self.root / name)
            self.shelf.write(name, (self.root / name).read_bytes())
            self._equal[name] = stamp
        else:
            self.shelf.remove(name)
            self._equal.pop(name, None)

    def forget(self, folder: str) -> None:
        """Remove a folder here, and only here."""
        shutil.rmtree(self.root / folder, ignore_errors=True)
        for known in (self._equal, self._versions):
            for name in [name for name in known if name.startswith(f"{folder}/")]:
                known.pop(name)


def own_mirror(url: Url) -> Mirror:
    """Return this process's mirror of a URL; it is gone when the process is."""
    return _own_mirror(url, os.getpid())


def lasting_mirror(url: Url) -> Mirror:
    """Return the mirror of a URL that all processes of a machine share: for files that are known by their hashes."""
    return Mirror(shelf_at(url), scratch() / f"copy-{sha256(url.text.encode()).hexdigest()[:16]}")


def local_copy(place: Where) -> Path:
    """Return a folder with all files of a place: the place itself, or this process's mirror of it.

    Raises:
        StoreError: If it cannot be reached.
    """
    if isinstance(place, Path):
        return place
    mirror = own_mirror(place)
    mirror.refresh(lambda _name: True)
    return mirror.root


@cache
def _own_mirror(url: Url, process: int) -> Mirror:  # a forked process has its own
    shelf = shelf_at(url)
    with cannot_write(scratch()):
        for left in scratch().glob(f"process-{namespace()}-*"):  # by processes that were killed
            if not process_is_alive(int(left.name.split("-")[2])):
                shutil.rmtree(left, ignore_errors=True)
        root = Path(tempfile.mkdtemp(prefix=f"process-{namespace()}-{process}-", dir=scratch()))
    atexit.register(_remove, root, process)
    return Mirror(shelf, root)


def _remove(root: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(root, ignore_errors=True)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(TEMPORARY)


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
