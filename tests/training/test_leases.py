"""Workers that are killed, suspended, cancelled or not alone, in a folder and at a URL: one result, the same bits."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commandline import kdbench

from kdbench.cli import main
from kdbench.cli.main import State
from kdbench.cli.run_one import inline_worker
from kdbench.errors import KdbenchError, StoreError
from kdbench.execution.events import Event
from kdbench.execution.inline import InlineExecutor
from kdbench.execution.jobs import Settings, runs_job
from kdbench.records import Record, parse_json
from kdbench.spec import RunSpec
from kdbench.storage import owner as owners
from kdbench.storage.heartbeat import HEARTBEAT, INTERVAL_VARIABLE, STALE_BEATS
from kdbench.storage.owner import Owner
from kdbench.storage.places import SCRATCH_VARIABLE, Url
from kdbench.storage.shelf import PathShelf
from kdbench.store import PREDICTIONS, RECORD, WEIGHTS, RunBusy, RunFolder, RunStore
from kdbench.training.runs import _claimed, run_cohort
from kdbench.training.trainer import Interrupted

BEAT = 0.05
KILLS = 8
BEFORE_MAIN = 2  # epochs of the phase before the main one, whose epochs attempts tell
BUSY = 75
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
BOTH = pytest.mark.parametrize("kind", ["path", "url"])


class Site:
    """A store that forked processes fill, and what lies there."""

    def __init__(self, lab: Any, spec: RunSpec, kind: str) -> None:
        self.lab, self.spec, root = lab, spec, lab.root / kind
        self.where = Url(f"file://{root}") if kind == "url" else root
        self.root, self.folder = root, root / spec.run_id
        RunStore(self.where).register([spec])

    def run(self, **changes: Any) -> Record:
        (record,) = run_cohort([self.spec.run_id], RunStore(self.where), replace(self.lab.place, **changes))
        return record

    def child(self, before: Callable[[], object] = lambda: None, **changes: Any) -> int:
        """Start a worker and return its pid; its exit code is that of the command."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which wait for nothing here
            pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            before()
            self.run(**changes)
            code = 0
        except KdbenchError as error:
            code = error.exit_code
        finally:
            os._exit(code)

    def epochs(self) -> int:
        path = self.folder / "epochs.jsonl"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0

    def check_equal(self, whole: Path) -> Record:
        """Compare the run with one that nobody disturbed."""
        for name in (WEIGHTS, PREDICTIONS):
            assert (self.folder / name).read_bytes() == (whole / name).read_bytes(), name
        names = {path.name for path in self.folder.iterdir()} - {"run.lock"}
        assert names == {path.name for path in whole.iterdir()}
        record, other = parse_json(Record, self.folder / RECORD), parse_json(Record, whole / RECORD)
        assert record.findings() == other.findings()
        return record


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, str(BEAT))
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))


@pytest.fixture
def spec(lab: Any) -> RunSpec:
    # More epochs than all that is done to a run leaves time for, on a fast machine, too.
    spec: RunSpec = lab.spec("toy_bank", anchor=lab.anchor(schedule__epochs=40))
    return spec


@pytest.fixture
def whole(lab: Any, spec: RunSpec) -> Path:
    """Return the folder of a run that nobody disturbed."""
    lab.run([spec], "whole")
    path: Path = lab.folders([spec], "whole")[0].path
    return path


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def to_another_machine() -> None:
    """Let this process, a child, be one whose pid says nothing here."""
    owners.here = lambda: "another machine"  # type: ignore[assignment]


@BOTH
def test_a_suspended_worker_is_succeeded_and_stops_without_writing(
    lab: Any, spec: RunSpec, whole: Path, kind: str
) -> None:
    """In a folder its file lock stands all the while: between machines the lease decides."""
    site = Site(lab, spec, kind)
    old = site.child(to_another_machine, should_stop=lambda: time.sleep(0.01))
    until(lambda: site.epochs() >= 2)
    os.kill(old, signal.SIGSTOP)
    reached = site.epochs()
    site.run()
    record = site.check_equal(whole)
    after = {path: path.read_bytes() for path in site.root.rglob("*") if path.is_file() and path.name != "run.lock"}
    os.kill(old, signal.SIGCONT)
    assert ended(old) == BUSY
    assert {path: path.read_bytes() for path in after} == after
    assert {path for path in site.root.rglob("*") if path.is_file() and path.name != "run.lock"} == set(after)
    assert [attempt.outcome for attempt in record.attempts] == ["killed", "ok"]
    assert record.attempts[1].from_epoch >= reached - 1 - BEFORE_MAIN


def test_kills_at_a_url_cost_at_most_the_epoch_in_flight(
    lab: Any, spec: RunSpec, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second one while a file is brought there, before or after it is; the others whenever it happens."""
    site, draws, inside, reached = Site(lab, spec, "url"), random.Random(0), 0, 0

    def kill_in_upload(number: int, *, after: bool) -> None:
        left, write = [number], PathShelf.write

        def dying(shelf: PathShelf, name: str, data: bytes) -> None:
            left[0] -= HEARTBEAT not in name
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            write(shelf, name, data)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(PathShelf, "write", dying)

    for number in range(KILLS):
        if number % 2:
            pid = site.child(lambda number=number: kill_in_upload(draws.randint(3, 7), after=number % 4 == 1))
            inside += ended(pid) == -signal.SIGKILL
        else:
            pid = site.child(should_stop=lambda: time.sleep(0.005))
            until((site.folder / HEARTBEAT).exists)
            time.sleep(draws.random() * 0.3)
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL
        assert site.epochs() >= reached, "an epoch that was done is gone"
        reached = site.epochs()
        assert not (site.folder / RECORD).exists()
    assert inside == KILLS // 2
    assert reached > 0
    site.run()
    record = site.check_equal(whole)
    assert record.attempts[-1].from_epoch >= reached - 1 - BEFORE_MAIN
    assert record.attempts[-1].from_epoch > 0


def test_of_workers_at_once_at_a_url_one_trains(lab: Any, spec: RunSpec, whole: Path) -> None:
    site = Site(lab, spec, "url")
    codes = sorted(map(ended, [site.child(should_stop=lambda: time.sleep(0.01)) for _ in range(3)]))
    assert codes == [0, BUSY, BUSY]
    assert len(site.check_equal(whole).attempts) == 1


@BOTH
def test_a_cancelled_run_is_saved_and_goes_on_when_it_is_wanted(
    lab: Any, spec: RunSpec, whole: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(lab, spec, kind)
    worker = site.child(should_stop=lambda: time.sleep(0.01))
    until(lambda: site.epochs() >= 1)
    with pytest.raises(SystemExit) as end:
        main(["cancel", str(site.where), spec.run_id])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"asked to stop: 1 running, 0 waiting; kdbench status {site.where}\n"
    assert ended(worker) == BUSY
    assert list(site.folder.glob("checkpoint/*.pt"))
    assert sorted(PathShelf(site.folder).names()) == [
        "attempts.json", "checkpoint", "epochs.csv", "epochs.jsonl", "spec.json", "stop"
    ]  # fmt: skip
    RunStore(site.where).folder(spec.run_id).uncancel()  # as the driver does
    site.run()
    record = site.check_equal(whole)
    assert [attempt.outcome.partition(":")[0] for attempt in record.attempts] == ["Interrupted", "ok"]


def test_a_cohort_whose_machine_is_gone_is_waited_for_once_and_not_run_by_run(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in "fbdcea"]
    gone = Owner.me().model_copy(update={"place": "another machine"})
    for folder in folders:
        folder.shelf.create("lease-00001.json", gone.model_dump_json().encode())
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        assert _claimed(folders, stack, lambda: False) == folders
        waited = time.monotonic() - began
    assert STALE_BEATS * BEAT <= waited < 3 * STALE_BEATS * BEAT


def test_who_is_told_to_stop_while_it_waits_for_a_silent_owner_stops(lab: Any, spec: RunSpec) -> None:
    site = Site(lab, spec, "path")
    gone = Owner.me().model_copy(update={"place": "another machine"})
    site.folder.joinpath("lease-00001.json").write_text(gone.model_dump_json(), encoding="utf-8")
    with pytest.raises(RunBusy) as caught:
        site.run(should_stop=lambda: True)
    assert caught.value.exit_code == BUSY
    assert sorted(path.name for path in site.folder.iterdir()) == ["lease-00001.json", "spec.json"]


@BOTH
def test_a_run_that_was_cancelled_before_it_began_is_not_begun_and_keeps_no_other_from_it(
    lab: Any, spec: RunSpec, whole: Path, kind: str
) -> None:
    site = Site(lab, spec, kind)
    other = lab.spec("student", anchor=spec.anchor)
    store = RunStore(site.where)
    store.register([other])
    store.folder(other.run_id).cancel()
    (record,) = run_cohort([other.run_id, spec.run_id], store, lab.place)
    assert record.run_id == spec.run_id
    site.check_equal(whole)
    assert sorted(path.name for path in (site.root / other.run_id).iterdir() if path.name != "run.lock") == [
        "spec.json", "stop"
    ]  # fmt: skip
    assert not store.folder(other.run_id).held()
    with pytest.raises(Interrupted) as caught:
        run_cohort([other.run_id], store, lab.place)
    assert str(caught.value) == (
        f"cancelled before they began: {other.run_id}; the command that planned them begins them"
    )
    assert caught.value.exit_code == BUSY
    store.folder(spec.run_id).cancel()
    assert len(run_cohort([spec.run_id], store, lab.place)) == 1, "what is done is done"


@pytest.mark.parametrize("inline", [False, True])
def test_a_worker_with_cancelled_runs_does_the_others_and_says_that_it_was_stopped(lab: Any, inline: bool) -> None:
    wanted, other = lab.spec("student"), lab.spec("vanilla_kd")
    store, teachers = RunStore(lab.root / "runs"), lab.place.teachers.root
    store.register([wanted, other])
    store.folder(other.run_id).cancel()
    said = f"cancelled before they began: {other.run_id}; the command that planned them begins them"
    if inline:
        seen: list[Event] = []
        settings = Settings(store.root, teachers, Path("data"), ("cpu",), 1)
        engine = InlineExecutor(inline_worker(settings, seen.append, State()))
        engine.submit(runs_job([wanted.run_id, other.run_id], store.root))
        ended = engine.wait()
        assert (ended.exit_code, ended.error) == (BUSY, f"kdbench: {said}")
        assert [event.data["run_id"] for event in seen if event.kind == "record"] == [wanted.run_id]
    else:
        words = ("--store", store.root, "--teachers", teachers, "--device", "cpu", "--threads", 1)
        outcome = kdbench("run-one", *words, "--run", wanted.run_id, "--run", other.run_id)
        assert (outcome.code, outcome.err) == (BUSY, f"kdbench: {said}\n")
        assert outcome.out.startswith(f"{wanted.run_id}: ok ")
    assert store.folder(other.run_id).shelf.names() == ["spec.json", "stop"]


def test_a_url_that_is_away_for_a_while_costs_no_run(
    lab: Any, spec: RunSpec, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs that cannot be brought there are counted; what is there in the end is complete."""
    site, write, tries = Site(lab, spec, "url"), PathShelf.write, itertools.count()

    def away(shelf: PathShelf, name: str, data: bytes) -> None:
        if ".pt" in name and next(tries) == 2:
            raise StoreError("the store is away")
        write(shelf, name, data)

    monkeypatch.setattr(PathShelf, "write", away)
    record = site.run()
    assert record.attempts[-1].outcome == "1 checkpoints could not be saved"
    site.check_equal(whole)
