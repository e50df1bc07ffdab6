"""Opening files of a cache within its limit; where that cannot be, one warning is given and teachers run live."""

from __future__ import annotations

import contextlib
import logging
import shutil

from filelock import FileLock, Timeout

from kdbench.files import set_aside
from kdbench.training.teacher_cache.entries import Entries, size_of
from kdbench.training.teacher_cache.key import CacheKey
from kdbench.training.teacher_cache.place import CachePlace, gibibytes

LOCK, PATIENCE = "cache.lock", 60.0  # seconds; the lock is held for as long as it takes to make an empty file


def opened(place: CachePlace, key: CacheKey) -> Entries | None:
    """Return the file of a key, or None after saying why there is none."""
    path = key.path(place.folder)
    try:
        with _locked(place):
            with contextlib.suppress(OSError):  # somebody else's
                place.sweep()  # what is left half made would be counted as if it were full
            if path.exists() or not (reason := _too_large(place, key)):
                return Entries.open(path, key)
    except (OSError, Timeout) as error:
        reason = f"{path} cannot be used ({error})"
    say(f"{reason}; teacher '{key.teaching.name}' runs live")
    return None


def replaced(place: CachePlace, entries: Entries) -> Entries | None:
    """Set a file aside that the self-check found wrong, and return an empty one in its place."""
    entries.close()
    try:
        with _locked(place):
            if entries.is_at_its_path():  # or another process has done so
                kept = set_aside(entries.path)
                say(
                    f"{kept}: held other {entries.key.part} than teacher '{entries.key.teaching.name}' gives now; it "
                    "was set aside, and is filled anew"
                )
    except (OSError, Timeout) as error:
        say(f"{entries.path} cannot be set aside ({error}); teacher '{entries.key.teaching.name}' runs live")
        return None
    return opened(place, entries.key)


def say(message: str) -> None:
    """Warn."""
    logging.getLogger(__name__).warning("teacher cache: %s", message)


def _locked(place: CachePlace) -> FileLock:
    place.folder.mkdir(parents=True, exist_ok=True)
    return FileLock(place.folder / LOCK, timeout=PATIENCE)


def _too_large(place: CachePlace, key: CacheKey) -> str:
    """Return why a new file may not be made, or ''."""
    size, room = size_of(key), place.room(key.path(place.folder))
    what = f"the {key.part} of all {key.entries:,} crops take {gibibytes(size)}"
    if size > room:
        return (
            f"{what}, but of the {gibibytes(place.size)} of {place.folder} {gibibytes(max(0, room))} are left; raise "
            "--cache-size, or remove files there"
        )
    free = shutil.disk_usage(place.folder).free
    return f"{what}, but the disk of {place.folder} has {gibibytes(free)} left" if size > free else ""
