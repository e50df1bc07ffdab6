"""A folder in which one process at a time works, on whatever machine: claimed, shown to be alive, given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from kdbench.errors import StoreError
from kdbench.files import cannot_write, set_aside, sweep_temporary, write_atomic
from kdbench.storage.lease import STOP, Lease, claim, holder_of, is_free, is_lease_file
from kdbench.storage.mirror import Mirror
from kdbench.storage.shelf import PathShelf, Shelf

LOCK = "run.lock"
KEPT = ("spec.json",)  # never removed at a URL, even if the local copy is swept away: it says what was planned
LOOK_SECONDS = 0.5  # somebody who only looks whether a lock is held has it no longer than that


class RunBusy(StoreError):
    """Another process is writing this run."""

    exit_code = 75


@dataclass
class SharedFolder:
    """The files of one run or training.

    Args:
        path: Its folder.
        mirror: What the folder is a part of, if it stands for one at a URL.
    """

    path: Path
    mirror: Mirror | None = None
    lease: Lease | None = field(default=None, init=False, repr=False, compare=False)  # while this process is at it

    @property
    def shelf(self) -> Shelf:
        """The folder as processes share it."""
        return self.mirror.shelf.at(self._place(self.mirror)) if self.mirror else PathShelf(self.path)

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name, whatever it holds."""
        self.pull(name)
        return (self.path / name).exists()

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file here; one who has lost the run meanwhile leaves it as it is.

        Raises:
            LeaseLost: If another process has taken the run over.
            StoreError: If it cannot be written.
        """
        write_atomic(self.path / name, data, ready=self.confirm)

    def set_aside(self, name: str, why: str = "corrupt") -> None:
        """Rename a file to ``NAME.WHY``."""
        set_aside(self.path / name, why)
        self.push()

    def pull(self, *names: str) -> None:
        """Bring files of a run at a URL here, as they are there now; else nothing is to be done."""
        if self.mirror:
            self.mirror.pull(*(f"{self._place(self.mirror)}/{name}" for name in names))

    def push(self) -> None:
        """Bring what changed here to the URL of the run, if it has one.

        Raises:
            LeaseLost: If another process has taken the run over.
            StoreError: If it cannot be reached.
        """
        if self.mirror:
            self.mirror.push(self._place(self.mirror), keep=KEPT, ready=self.confirm)

    def _place(self, mirror: Mirror) -> str:
        return mirror.place_of(self.path)

    def held(self, *, only_look: bool = False) -> bool:
        """Return whether a process is at the run; a lock or a lease without a living owner was left by a killed one.

        Args:
            only_look: Whether such a lock stays, as in a store that is only read.
        """
        return not is_free(self.shelf, holder_of(self.shelf), barred=self._locked(only_look=only_look))

    def look(self) -> None:
        """Time the silence of whoever is at it from now on: those of several folders pass at once, not in a row."""
        is_free(self.shelf, holder_of(self.shelf), barred=False)

    def tidy(self) -> None:
        """Remove what a writer left that was killed when this run was finished and others beside it were not."""
        if ((self.path / LOCK).exists() or holder_of(self.shelf)) and not self.held():
            with suppress(RunBusy), self.claimed():
                pass

    def cancel(self) -> None:
        """Ask whoever is at the run to save and stop, on whatever machine; it is not begun again meanwhile."""
        self.shelf.write(STOP, b"")

    def uncancel(self) -> None:
        """Let the run be begun again."""
        self.shelf.remove(STOP)

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop, and nobody has wanted it again since."""
        return self.shelf.read(STOP) is not None

    def confirm(self) -> None:
        """Look, before something is written, whether a run that was claimed is still this process's.

        Raises:
            LeaseLost: If another process has taken it over.
        """
        if self.lease is not None:
            self.lease.confirm()

    @contextmanager
    def claimed(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold the folder's lock and its lease; what lies at a URL is brought here for that time.

        Args:
            should_stop: Asked while it is watched whether a process elsewhere that is at it still lives.

        Raises:
            RunBusy: If another process is at it, or may be and this one is to stop.
        """
        with self._file_lock() as locked:
            lease = claim(self.shelf, barred=not locked, should_stop=should_stop)
            if lease is None:
                raise RunBusy(f"{self.shelf.label}: another process is training this run; wait for it or stop it")
            self.lease = lease
            try:
                self._open()
                yield
                self.push()
            finally:
                lease.release()
                self.lease = None
                if self.mirror:
                    self.mirror.forget(self._place(self.mirror))

    def _open(self) -> None:
        if self.mirror:
            self.mirror.pull_folder(self._place(self.mirror), lambda name: not is_lease_file(name))
        self.path.mkdir(parents=True, exist_ok=True)
        sweep_temporary(self.path)

    @contextmanager
    def _file_lock(self) -> Iterator[bool]:
        """Hold the folder's lock; False if another process has it. A killed process lets go of it at once."""
        if self.mirror:  # which is this process's own
            yield True
            return
        with cannot_write(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, poll_interval=0.05)
            try:
                lock.acquire(timeout=LOOK_SECONDS)
            except Timeout:
                locked = False
            else:
                locked = True
        try:
            yield locked
        finally:
            if locked:
                (self.path / LOCK).unlink(missing_ok=True)
                lock.release()

    def _locked(self, *, only_look: bool) -> bool:
        if not (self.path / LOCK).exists():
            return False
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:
            if only_look:  # of one that cannot be opened nobody knows
                return True
            with cannot_write(self.path / LOCK):
                raise
        if not only_look:
            (self.path / LOCK).unlink(missing_ok=True)
        lock.release()
        return False
