"""Leases: one owner at a time, silent ones are succeeded and find out, and nothing is left when nobody is at a run."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbench.errors import ConfigError
from kdbench.storage import lease as leases
from kdbench.storage import owner as owners
from kdbench.storage.heartbeat import (
    HEARTBEAT,
    INTERVAL_VARIABLE,
    STALE_BEATS,
    Heartbeat,
    Reached,
    interval,
    read_heartbeat,
)
from kdbench.storage.lease import STOP, Lease, LeaseLost, claim, holder_of, is_free, is_lease_file
from kdbench.storage.owner import Owner
from kdbench.storage.places import Url
from kdbench.storage.shelf import PathShelf, Shelf
from kdbench.storage.url_shelf import UrlShelf, shelf_at

BEAT = 0.05
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, str(BEAT))


@pytest.fixture(params=["path", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    """A folder on disk, and one in a file system of fsspec."""
    return (
        PathShelf(tmp_path / "run") if request.param == "path" else shelf_at(Url(f"memory://leases/{next(_numbers)}"))
    )


@pytest.fixture
def taken(shelf: Shelf) -> Iterator[Lease]:
    lease = claim(shelf)
    assert lease is not None
    yield lease
    lease.release()


def elsewhere(shelf: Shelf, number: int = 1) -> Owner:
    """Leave the claim of a process of another machine."""
    owner = Owner.me().model_copy(update={"place": "elsewhere", "pid": 1})
    assert shelf.create(f"lease-{number:05d}.json", owner.model_dump_json().encode())
    return owner


def beat(shelf: Shelf, owner: Owner, at: str, number: int = 1) -> None:
    heartbeat = Heartbeat(lease=number, owner=owner, started_at=at, beaten_at=at, moved_at=at, interval=BEAT)
    shelf.write(HEARTBEAT, heartbeat.model_dump_json().encode())


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_claim_shows_and_leaves_nothing(shelf: Shelf) -> None:
    lease = claim(shelf)
    assert lease is not None
    assert shelf.names() == [HEARTBEAT, "lease-00001.json"]
    assert all(map(is_lease_file, shelf.names()))
    assert claim(shelf, barred=True) is None  # at once: within a machine the lock is trusted
    lease.release()
    assert shelf.names() == []
    assert read_heartbeat(shelf) is None


def test_beats_go_on_and_say_how_far_it_is(shelf: Shelf, taken: Lease) -> None:
    first = read_heartbeat(shelf)
    assert first is not None
    assert (first.lease, first.owner, first.progress.phase, first.share_at_start) == (1, taken.owner, "", None)
    taken.attempt = 2
    taken.reached(Reached(phase="main", epoch=1, epochs=4, within=0.5, done=0.375))
    taken.reached(Reached(phase="main", epoch=2, epochs=4, within=0.0, done=0.5))
    until(lambda: (found := read_heartbeat(shelf)) and found.progress.epoch == 2)
    last = read_heartbeat(shelf)
    assert last is not None
    assert (last.attempt, last.share_at_start, last.interval) == (2, 0.375, BEAT)
    assert first.started_at == last.started_at < last.beaten_at
    assert last.limit == STALE_BEATS * BEAT


def test_of_many_at_once_one_gets_it(shelf: Shelf) -> None:
    start, got = threading.Barrier(8), []

    def run() -> None:
        start.wait()
        got.append(claim(shelf))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = filter(None, got)
    assert [name for name in shelf.names() if name != HEARTBEAT] == [f"lease-{lease.number:05d}.json"]
    lease.release()


def test_an_owner_of_this_machine_that_is_gone_is_succeeded_at_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from kdbench.storage.owner import Owner\nprint(Owner.me().model_dump_json())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    shelf.create("lease-00007.json", dead)
    monkeypatch.setattr(leases.time, "sleep", lambda _seconds: pytest.fail("nobody need be waited for"))
    lease = claim(shelf)
    assert lease is not None
    assert [name for name in shelf.names() if name != HEARTBEAT] == ["lease-00008.json"]
    lease.release()
    assert shelf.names() == []


def test_an_owner_elsewhere_that_beats_is_left_alone_whatever_its_clock_says(shelf: Shelf) -> None:
    owner = elsewhere(shelf)
    beat(shelf, owner, "1970-01-01T00:00:00+00:00")
    threading.Timer(4 * BEAT, beat, (shelf, owner, "1970-01-01T00:00:01+00:00")).start()
    assert claim(shelf) is None
    assert shelf.names() == [HEARTBEAT, "lease-00001.json"]


@pytest.mark.parametrize("barred", [False, True])
@pytest.mark.parametrize("began", [False, True])
def test_an_owner_elsewhere_that_is_silent_is_succeeded(shelf: Shelf, barred: bool, began: bool) -> None:
    """Its file lock may still stand: the lock of a machine that is gone."""
    owner = elsewhere(shelf)
    if began:
        beat(shelf, owner, "2999-01-01T00:00:00+00:00")
    asked = time.monotonic()
    lease = claim(shelf, barred=barred)
    assert lease is not None
    assert lease.number == 2
    assert time.monotonic() - asked >= STALE_BEATS * BEAT
    lease.release()
    assert shelf.names() == []


def test_who_is_to_stop_waits_for_no_silence(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "3600")  # else a slow machine would find the owner silent
    elsewhere(shelf)
    assert claim(shelf, should_stop=lambda: True) is None
    assert shelf.names() == ["lease-00001.json"]


def test_silence_is_counted_from_the_first_look(shelf: Shelf) -> None:
    elsewhere(shelf)
    assert not is_free(shelf, holder_of(shelf), barred=False)
    time.sleep(1.2 * STALE_BEATS * BEAT)
    assert is_free(shelf, holder_of(shelf), barred=False)


def test_an_overtaken_owner_finds_out_and_touches_nothing(shelf: Shelf) -> None:
    old = claim(shelf)
    assert old is not None
    elsewhere(shelf, number=2)
    with pytest.raises(LeaseLost, match="another process has taken this run over, as nothing was heard of this one"):
        old.confirm()
    until(lambda: not old._thread.is_alive())  # its own beats found out as well
    with pytest.raises(LeaseLost):
        _ = old.stopping
    before = {name: shelf.read(name) for name in shelf.names()}
    old.release()
    assert {name: shelf.read(name) for name in shelf.names()} == before
    assert LeaseLost.exit_code == 75


def test_a_number_that_is_used_again_does_not_bring_an_old_owner_back(shelf: Shelf) -> None:
    old = claim(shelf)
    assert old is not None
    shelf.remove("lease-00001.json")  # somebody took it over, finished, and left; then the next one came
    elsewhere(shelf, number=1)
    with pytest.raises(LeaseLost):
        old.confirm()
    old.release()
    assert "lease-00001.json" in shelf.names()


def test_asked_to_stop(shelf: Shelf, taken: Lease) -> None:
    assert not taken.stopping
    shelf.write(STOP, b"")
    until(lambda: taken.stopping)


def test_whoever_begins_after_the_question_knows_it_from_its_first_step(shelf: Shelf) -> None:
    shelf.write(STOP, b"")
    lease = claim(shelf)
    assert lease is not None
    assert lease.stopping
    lease.release()
    assert shelf.names() == [STOP]  # until somebody wants the run again


@pytest.mark.parametrize("data", [b"", b"{", b'{"host": 1}', b"[]"])
def test_foreign_files_are_no_owners_and_no_beats(shelf: Shelf, data: bytes) -> None:
    shelf.write("lease-00001.json", data)
    shelf.write(HEARTBEAT, data)
    holder = holder_of(shelf)
    assert holder is not None
    assert (holder.number, holder.owner, holder.beat) == (1, None, None)
    lease = claim(shelf)
    assert lease is not None
    assert lease.number == 2
    lease.release()


@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", "inf"])
def test_an_interval_that_is_none(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, said)
    with pytest.raises(ConfigError) as caught:
        interval()
    assert (
        str(caught.value) == f"KDBENCH_HEARTBEAT={said}: not a number of seconds above 0; correct it, or leave it out"
    )


def test_owners_are_told_apart() -> None:
    me = Owner.me()
    assert me.is_here
    assert not me.is_gone
    assert Owner.me().token != me.token
    assert me.model_copy(update={"born": me.born + 1}).is_gone  # another process has its number now
    assert not me.model_copy(update={"place": "elsewhere", "pid": 4_000_000}).is_gone
    assert me.model_copy(update={"pid": 4_000_000}).is_gone


def test_where_processes_are_hidden_nobody_counts_as_gone_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hidepid, which keeps those of other users out of /proc."""
    me = Owner.me()
    monkeypatch.setattr(owners, "_read", lambda _path: "")
    assert not me.is_gone
    assert me.model_copy(update={"pid": 4_000_000}).is_gone
    monkeypatch.undo()
    assert not me.model_copy(update={"born": 0}).is_gone


def test_a_process_that_waits_to_be_buried_is_gone() -> None:
    code = "from kdbench.storage.owner import Owner\nprint(Owner.me().model_dump_json(), flush=True)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    owner = Owner.model_validate_json(child.stdout.readline())
    child.stdout.close()
    until(lambda: owner.is_gone)  # although nobody has waited for it
    child.wait()


@pytest.mark.parametrize(("variable", "job"), [("KDBENCH_JOB", "ray-7"), ("SLURM_JOB_ID", "4711")])
def test_the_engines_job(variable: str, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, job)
    assert Owner.me().job == job


def test_beats_outlast_a_bucket_that_is_not_there_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, failed = shelf_at(Url(f"memory://leases/{next(_numbers)}")), []
    assert isinstance(shelf, UrlShelf)

    def bucketless(path: str, _data: bytes) -> None:
        failed.append(path)
        raise FileNotFoundError("The specified bucket does not exist")

    lease = claim(shelf)
    assert lease is not None
    with monkeypatch.context() as patch:
        patch.setattr(shelf.files, "pipe_file", bucketless)
        until(lambda: failed)
    last = read_heartbeat(shelf)
    until(lambda: read_heartbeat(shelf) != last)
    lease.release()
