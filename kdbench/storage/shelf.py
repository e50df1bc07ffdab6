"""A folder as processes of several machines share it: whole files by name, and the first one to create a name wins."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path, PurePosixPath
from typing import Protocol

from kdbench.errors import StoreError
from kdbench.files import TEMPORARY, create_exclusive, unreadable, write_atomic


class Shelf(Protocol):
    """A folder, wherever it is. Every method raises StoreError if it cannot be reached."""

    @property
    def label(self) -> str:
        """How messages name it."""
        ...

    def at(self, folder: str) -> Shelf:
        """Return a folder in it."""
        ...

    def names(self) -> list[str]:
        """Return the names of what lies in it; none if it does not exist."""
        ...

    def find(self) -> dict[str, str]:
        """Return all files in it and below, by path with ``/``, each with what changes when the file does."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a whole file; None if there is none."""
        ...

    def read_all(self, names: list[str]) -> dict[str, bytes]:
        """Return several files, those that exist."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, or make it; a reader sees all of the old one or all of the new one.

        It need not outlast a loss of power; what is created must.
        """
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a file and return True; of several who try at once one succeeds, and nothing is ever replaced."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is removed already."""
        ...


class PathShelf:
    """A folder in the file system.

    Args:
        folder: Its path; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def label(self) -> str:
        """Its path."""
        return str(self.folder)

    def at(self, folder: str) -> PathShelf:
        """See :class:`Shelf`."""
        return PathShelf(self.folder / folder)

    def names(self) -> list[str]:
        """See :class:`Shelf`."""
        try:
            return sorted(path.name for path in self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self.folder, error) from error

    def find(self) -> dict[str, str]:
        """See :class:`Shelf`."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                about = path.stat()
                if stat.S_ISREG(about.st_mode) and not path.name.startswith(TEMPORARY):
                    name = path.relative_to(self.folder).as_posix()
                    found[name] = f"{about.st_ino} {about.st_size} {about.st_mtime_ns}"
        return found

    def read(self, name: str) -> bytes | None:
        """See :class:`Shelf`."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.folder / name, error) from error

    def read_all(self, names: list[str]) -> dict[str, bytes]:
        """See :class:`Shelf`."""
        return {name: data for name in names if (data := self.read(name)) is not None}

    def write(self, name: str, data: bytes) -> None:
        """See :class:`Shelf`."""
        write_atomic(self.folder / name, data, durable=False)

    def create(self, name: str, data: bytes) -> bool:
        """See :class:`Shelf`."""
        return create_exclusive(self.folder / name, data)

    def remove(self, name: str) -> None:
        """See :class:`Shelf`."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder / name}: cannot be removed ({error.strerror})") from error
        with contextlib.suppress(OSError):  # at a URL, too, there is no folder without files
            for folder in PurePosixPath(name).parents[:-1]:
                (self.folder / folder).rmdir()
