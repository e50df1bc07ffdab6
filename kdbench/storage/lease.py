"""The lease of a run: one owner at a time, also where file locks cannot be trusted, or do not exist.

Claims are numbered files, ``lease-00001.json`` and so on, each made by the one process that was first to create its
name; the highest number owns the run. An owner shows that it lives by a heartbeat. One that has given none for long is
overtaken by the next number: it finds that out before it writes anything else, and stops.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kdbench.errors import KdbenchError, StoreError
from kdbench.records import Corrupt, parse_bytes
from kdbench.storage.heartbeat import HEARTBEAT, STALE_BEATS, Heartbeat, Reached, interval, read_heartbeat
from kdbench.storage.owner import Owner
from kdbench.storage.shelf import Shelf

STOP = "stop"  # whoever wants a run to save and stop puts a file of this name into its folder
_LEASE = re.compile(r"lease-(\d{5})\.json")


class LeaseLost(KdbenchError):
    """Another process has taken the run over; this one must not write to it any more."""

    exit_code = 75


@dataclass(frozen=True)
class Holder:
    """Who holds a run: the highest claim, and its last beat.

    Args:
        number: Of the claim.
        owner: Who made it; None = the file vanished while it was looked at, or is foreign.
        beat: Its heartbeat; None before the first one.
    """

    number: int
    owner: Owner | None
    beat: Heartbeat | None

    @property
    def limit(self) -> float:
        """Seconds without a beat after which the run counts as abandoned."""
        return self.beat.limit if self.beat else STALE_BEATS * interval()


def is_lease_file(name: str) -> bool:
    """Return whether a file in a run's folder belongs to its lease, and so only to whoever is at it."""
    return name in {HEARTBEAT, STOP} or _LEASE.fullmatch(name) is not None


def holder_of(shelf: Shelf) -> Holder | None:
    """Return who holds a run; None if nobody does.

    Raises:
        StoreError: If the folder cannot be read.
    """
    numbers = _numbers(shelf.names())
    if not numbers:
        return None
    data, beat = shelf.read(_name(numbers[-1])), read_heartbeat(shelf)
    try:
        owner = None if data is None else parse_bytes(Owner, data, f"{shelf.label}/{_name(numbers[-1])}")
    except Corrupt:
        owner = None
    return Holder(numbers[-1], owner, beat if beat and owner and beat.owner == owner else None)


_seen: dict[str, tuple[Holder, float]] = {}  # of each folder, what was seen last, and when it was seen first


def is_free(shelf: Shelf, holder: Holder | None, *, barred: bool) -> bool:
    """Return whether a run could be claimed now.

    The silence of an owner elsewhere is timed by this process's own clock, from when it first saw the last beat; so
    the clocks of two machines need not agree, and a first look never finds silence.

    Args:
        shelf: The run's folder.
        holder: Who holds it.
        barred: Whether a process of some machine holds the run's file lock, as far as this one can tell.
    """
    if holder is None:
        return not barred
    if holder.owner is not None and holder.owner.is_here:
        if barred:
            return False  # within one machine the lock can be trusted
        if holder.owner.is_gone:
            return True
    now = time.monotonic()
    known, since = _seen.get(shelf.label, (None, now))
    if known != holder:
        _seen[shelf.label] = (holder, since := now)
    return now - since > holder.limit


def claim(shelf: Shelf, *, barred: bool = False, should_stop: Callable[[], bool] = lambda: False) -> Lease | None:
    """Make this process the owner of a run.

    An owner elsewhere that may be gone is watched: until its next beat, or until it is silent for too long.

    Args:
        shelf: The run's folder.
        barred: Whether another process holds the run's file lock.
        should_stop: Asked while an owner is watched; who is to stop leaves the run to it.

    Returns:
        The lease, which is beating; None if somebody else is at the run.

    Raises:
        StoreError: If the folder cannot be read or written.
    """
    first = holder_of(shelf)
    while True:
        holder = holder_of(shelf)
        if not is_free(shelf, holder, barred=barred):
            at_once = holder is None or (barred and holder.owner is not None and holder.owner.is_here)
            if at_once or holder != first or should_stop():
                return None
            time.sleep(interval() / 5)
            continue
        lease = Lease(shelf, holder.number + 1 if holder else 1, Owner.me())
        if lease.take():
            return lease


class Lease:
    """A claim of this process.

    Args:
        shelf: The run's folder.
        number: Of the claim.
        owner: This process.
    """

    def __init__(self, shelf: Shelf, number: int, owner: Owner) -> None:
        self.shelf, self.number, self.owner = shelf, number, owner
        self.attempt = 0
        self.progress = Reached()
        self._share_at_start: float | None = None
        self._started_at = self._moved_at = _now()
        self._interval = interval()
        self._stop = self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="kdbench-heartbeat", daemon=True)

    def take(self) -> bool:
        """Create the claim, and begin to beat; return False if another process was first."""
        if not self.shelf.create(_name(self.number), f"{self.owner.model_dump_json(indent=2)}\n".encode()):
            return False
        for number in _numbers(self.shelf.names()):  # overtaken ones: their owners look for their own, too
            if number < self.number:
                self.shelf.remove(_name(number))
        try:
            self._beat()
        except BaseException:
            self.release()
            raise
        self._thread.start()
        return True

    def reached(self, progress: Reached) -> None:
        """Note how far the run is; the next beat says it."""
        if self._share_at_start is None:
            self._share_at_start = progress.done
        self.progress, self._moved_at = progress, _now()

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the run to save and stop, as of the last beat.

        Raises:
            LeaseLost: If the last beat found out that another process has the run.
        """
        if self._lost:
            raise self._error()
        return self._stop

    def confirm(self) -> list[str]:
        """Look whether the run is still this process's, as it must before it writes; return the names in the folder.

        Raises:
            LeaseLost: If another process has taken it over.
            StoreError: If the folder cannot be read.
        """
        names = self.shelf.names()
        mine = self.shelf.read(_name(self.number)) if _numbers(names)[-1:] == [self.number] else None
        if self._lost or mine is None or self.owner.token.encode() not in mine:
            self._lost = True
            raise self._error()
        return names

    def release(self) -> None:
        """Stop beating, and leave the run to others, unless they have it already."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(LeaseLost, StoreError):  # what cannot be removed counts as abandoned before long
            names = self.confirm()
            self.shelf.remove(HEARTBEAT)
            for number in _numbers(names):  # the highest one last: an overtaken owner must not find its own on top
                self.shelf.remove(_name(number))

    def _beat_on(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._beat()
            except LeaseLost:
                return
            except StoreError:
                continue  # the next beat may come through; if none does, the run is another's before long

    def _beat(self) -> None:
        self._stop = STOP in self.confirm() or self._stop
        beat = Heartbeat(
            lease=self.number,
            owner=self.owner,
            attempt=self.attempt,
            started_at=self._started_at,
            beaten_at=_now(),
            moved_at=self._moved_at,
            interval=self._interval,
            progress=self.progress,
            share_at_start=self._share_at_start,
        )
        self.shelf.write(HEARTBEAT, f"{beat.model_dump_json(indent=2)}\n".encode())

    def _error(self) -> LeaseLost:
        silent = STALE_BEATS * self._interval
        return LeaseLost(
            f"{self.shelf.label}: another process has taken this run over, as nothing was heard of this one for "
            f"{silent:g} s; it goes on there, and nothing more is written here"
        )


def _name(number: int) -> str:
    return f"lease-{number:05d}.json"


def _numbers(names: list[str]) -> list[int]:
    return sorted(int(match[1]) for match in map(_LEASE.fullmatch, names) if match)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
