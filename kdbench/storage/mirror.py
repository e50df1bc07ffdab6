"""A local folder that stands for one at a URL: runs are worked on there by the code that works on any other folder."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

from kdbench.errors import StoreError
from kdbench.files import TEMPORARY, cannot_write, process_is_alive, write_atomic
from kdbench.storage.owner import here_hash
from kdbench.storage.places import SCRATCH_VARIABLE, Url, Where, scratch
from kdbench.storage.shelf import Shelf
from kdbench.storage.url_shelf import shelf_at

Stamp = tuple[int, int]  # size and time of the last change of a local file
_UNFIT = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # backslashes, control characters, halves of characters


class Swept(StoreError):
    """Somebody has removed files of a local copy while it was in use: nothing can be brought back from it any more."""


class Mirror:
    """A local folder and the one it stands for. Names are paths below both, with ``/``.

    Args:
        shelf: The folder at the URL.
        root: The local one.
        held: An open descriptor of the local one, if it is this process's own: it tells whether that was removed, even
            where there is a folder of its name again.
    """

    def __init__(self, shelf: Shelf, root: Path, held: int | None = None) -> None:
        self.shelf, self.root, self._held = shelf, root, held
        self._equal: dict[str, Stamp] = {}  # files that are there as they are here, and how they are here
        self._versions: dict[str, str] = {}  # of them, those that were listed

    def place_of(self, path: Path) -> str:
        """Return the name of a local path; that of the folder itself is ``.``.

        Raises:
            StoreError: If it is none that :meth:`path_of` takes.
        """
        name = path.relative_to(self.root).as_posix()
        if path != self.root:
            self.path_of(name)
        return name

    def path_of(self, name: str) -> Path:
        """Return the local path of a name; no file is touched here but by a path from here.

        Whoever can write at the URL chooses the names there, and an object may have any: ``../x`` or ``/x`` would be
        written, and removed, anywhere on this machine.

        Raises:
            StoreError: If it leads out of the local folder, or is no name of a file on every system.
        """
        if _UNFIT.search(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise StoreError(
                f"{self.shelf.label}: the name {name!r} of a file there may lead out of the folder, and nothing is "
                "brought here (allowed: parts between single slashes, none of them '.' or '..', without backslashes "
                "and control characters); remove or rename the file there"
            )
        return self.root / name

    def pull(self, *names: str) -> None:
        """Bring files here; those that are not there are removed here.

        Raises:
            StoreError: If one cannot be brought, or may not have its name: then nothing is changed.
        """
        paths = {name: self.path_of(name) for name in names}
        found = self.shelf.read_all(list(paths))
        for name, path in paths.items():
            if name in found:
                write_atomic(path, found[name], durable=False)
                self._equal[name] = self._stamp(name)
            else:
                with cannot_write(path):
                    path.unlink(missing_ok=True)
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

        Raises:
            StoreError: If it cannot be reached, or somebody has removed the local copy: then nothing is removed there.
        """
        here = self._files(folder)
        for name in sorted(here):
            if self._equal.get(name) != self._stamp(name):
                ready()
                self._send(name)
        gone = {name for name in self._equal if name.startswith(f"{folder}/")} - here
        if gone and not here <= self._files(folder):  # somebody else is removing files
            raise self._swept(folder)
        for name in gone - {f"{folder}/{name}" for name in keep}:
            ready()
            self._remove(name)

    def push_file(self, name: str) -> None:
        """Bring a file there, or remove it there if it is not here."""
        if self.path_of(name).exists():
            self._send(name)
        else:
            self._remove(name)

    def forget(self, folder: str) -> None:
        """Remove a folder here, and only here."""
        shutil.rmtree(self.path_of(folder), ignore_errors=True)
        for known in (self._equal, self._versions):
            for name in [name for name in known if name.startswith(f"{folder}/")]:
                known.pop(name)

    def _send(self, name: str) -> None:
        self._versions.pop(name, None)
        stamp = self._stamp(name)
        try:
            data = self.path_of(name).read_bytes()
        except FileNotFoundError as error:
            raise self._swept(name) from error
        self.shelf.write(name, data)
        self._equal[name] = stamp

    def _remove(self, name: str) -> None:
        self._versions.pop(name, None)
        self.shelf.remove(name)
        self._equal.pop(name, None)

    def _files(self, folder: str) -> set[str]:
        """Return the names of all files of a folder; raises StoreError if somebody has removed it."""
        try:
            found = {self.place_of(path) for path in self.path_of(folder).rglob("*") if _is_file(path)}
            same = self._held is None or os.path.samestat(os.fstat(self._held), self.root.stat())
        except FileNotFoundError as error:
            raise self._swept(folder) from error
        if not same or (not found and any(name.startswith(f"{folder}/") for name in self._equal)):
            raise self._swept(folder)
        return found

    def _stamp(self, name: str) -> Stamp:
        try:
            found = self.path_of(name).stat()
        except FileNotFoundError as error:
            raise self._swept(name) from error
        return found.st_size, found.st_mtime_ns

    def _swept(self, name: str) -> Swept:
        return Swept(
            f"{self.path_of(name)}: somebody has removed this copy of what lies at {self.shelf.label} while it was in "
            f"use; name a folder that nobody clears in {SCRATCH_VARIABLE}, and start again"
        )


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
    shelf, mine = shelf_at(url), f"process-{here_hash()}-"  # nodes may share the folder, and pids speak for one alone
    with cannot_write(scratch()):
        for left in scratch().glob(f"{mine}*"):  # by processes that were killed
            number = left.name.removeprefix(mine).partition("-")[0]
            if number.isdecimal() and not process_is_alive(int(number)):
                shutil.rmtree(left, ignore_errors=True)
        root = Path(tempfile.mkdtemp(prefix=f"{mine}{process}-", dir=scratch()))
        held = os.open(root, os.O_RDONLY)
    atexit.register(_remove, root, process)
    return Mirror(shelf, root, held)


def _remove(root: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(root, ignore_errors=True)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(TEMPORARY)
