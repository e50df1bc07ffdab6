"""Disks that are full or read-only, and limits on the size of files."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from board import Place, Workshop
from table import EQUAL, Row

CANNOT_WRITE = 73
SIZE = "6m"
RESULT = 2**10 * 30  # bytes: the largest file of a result is smaller, a checkpoint is not
REFUSED, GOES_ON = f"exit {CANNOT_WRITE}, then {EQUAL}", f"checkpoints counted as not saved, {EQUAL}"


def disks(shop: Workshop, rounds: int) -> Iterator[Row]:
    """Let writing fail in every way, so often each."""
    row = Row("largest file 2-40 kB (RLIMIT_FSIZE), then none")
    for number in range(rounds):
        most = 2**10 * (2, 20, 40)[number % 3]
        row.add(GOES_ON if most > RESULT else REFUSED, _limited(shop, most))
    yield row
    for fault, work in (
        ("disk full, and again free", _full),
        ("disk full while checkpoints are written, free for the result", _full_for_a_while),
        ("read-only disk, then writable", _read_only),
    ):
        row = Row(fault)
        if os.geteuid():
            row.outcomes["NOT RUN: mounting a disk takes root"] = 0
        else:
            for _ in range(rounds):
                row.add(GOES_ON if work is _full_for_a_while else REFUSED, work(shop))
        yield row


def _refused(place: Place, work: object = None) -> str:
    ended = place.finish(work)
    if ended.code != CANNOT_WRITE or "cannot be written" not in ended.said:
        return f"exit {ended.code}: {ended.said[-300:]}"
    return ""


def _completed(shop: Workshop, place: Place) -> str:
    ended = place.finish()
    return ended.said[-300:] if ended.code else place.problems(shop.expected)


def _limited(shop: Workshop, most: int) -> str:
    place = shop.place(taught=True)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        place.make()

    if most > RESULT:
        return _without_checkpoints(shop, place, work)
    return _refused(place, work) or _completed(shop, place)


def _without_checkpoints(shop: Workshop, place: Place, work: object) -> str:
    """Return what is wrong with results, or with what they say of the checkpoints that could not be written."""
    if (ended := place.finish(work)).code:
        return f"exit {ended.code}: {ended.said[-300:]}"
    told = "checkpoints could not be saved" in (place.folder().path / "record.json").read_text(encoding="utf-8")
    return place.problems(shop.expected) if told else "the record does not say that checkpoints are missing"


@contextmanager
def _disk(shop: Workshop) -> Iterator[Place]:
    place = shop.place()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place.root)], check=True)
    try:
        subprocess.run(["cp", "-r", str(shop.whole.settings.teachers), str(place.root)], check=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place.root)], check=True)


def _fill(place: Place, leave: int) -> Path:
    """Fill a disk but for some bytes."""
    balloon = place.root / "balloon"
    free = os.statvfs(place.root).f_bavail * os.statvfs(place.root).f_frsize
    balloon.write_bytes(bytes(free - leave))
    return balloon


def _full(shop: Workshop) -> str:
    with _disk(shop) as place:
        balloon = _fill(place, leave=2**15)
        if problem := _refused(place):
            return problem
        balloon.unlink()
        return _completed(shop, place)


def _full_for_a_while(shop: Workshop) -> str:
    with _disk(shop) as place:
        place.register()
        balloon = _fill(place, leave=2**15)

        def work() -> None:
            from kdbench.training import runs

            measure = runs.measure
            runs.measure = lambda *a: (balloon.unlink(missing_ok=True), measure(*a))[1]
            place.make()

        return _without_checkpoints(shop, place, work)


def _read_only(shop: Workshop) -> str:
    with _disk(shop) as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place.root)], check=True)
        problem = _refused(place)
        subprocess.run(["mount", "-o", "remount,rw", str(place.root)], check=True)
        return problem or _completed(shop, place)
