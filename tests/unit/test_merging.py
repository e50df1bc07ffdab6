"""Merging when something goes wrong in between: full disks, kills, other processes. No run is ever there by half."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.errors import ProblemList, StoreError
from kdbench.files import place_folder, write_atomic
from kdbench.merging import copying, merge
from kdbench.merging.reading import read_store
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.storage.lease import is_lease_file
from kdbench.store import LOCK, RECORD, RunBusy, RunFolder, RunStore


@pytest.fixture
def source(tmp_path: Path, spec: RunSpec, record: Record) -> RunStore:
    """Return a store with one finished run, and one that is only planned."""
    store = RunStore(tmp_path / "source")
    other = spec.model_copy(update={"seed": 4})
    store.register([spec, other])
    folder = store.folder(spec.run_id)
    folder.write_record(record)
    folder.write_epochs([])
    (folder.path / "events").mkdir()
    (folder.path / "events" / "curve.bin").write_bytes(b"of an observer")
    return store


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_everything_of_a_finished_run_comes_along(source: RunStore, spec: RunSpec, out: Path) -> None:
    choice = merge([source.root], out)
    assert list(choice.copy) == [spec.run_id]
    assert choice.unfinished == [source.root / spec.model_copy(update={"seed": 4}).run_id]
    assert names(out / spec.run_id) == names(source.root / spec.run_id)
    assert "events/curve.bin" in names(out / spec.run_id)
    assert len(names(out)) == len(names(out / spec.run_id))  # no lock, no temporary folder


@pytest.mark.parametrize("after", range(5))
def test_a_full_disk_leaves_nothing_half_copied(
    source: RunStore, spec: RunSpec, out: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written: list[Path] = []

    def fill(path: Path, data: bytes | str) -> None:
        if len(written) == after:
            raise StoreError(f"{path}: cannot be written (No space left on device)")
        written.append(path)
        write_atomic(path, data)

    monkeypatch.setattr(copying, "write_atomic", fill)
    with pytest.raises(StoreError, match="No space left"):
        merge([source.root], out)
    assert len(written) == after
    assert names(out) == []
    assert RunStore(out).runs() == []
    monkeypatch.undo()
    assert list(merge([source.root], out).copy) == [spec.run_id]
    assert names(out / spec.run_id) == names(source.root / spec.run_id)


def test_a_kill_leaves_what_nobody_takes_for_a_run_and_the_next_merge_removes(
    source: RunStore, spec: RunSpec, out: Path
) -> None:
    code = (
        "import os, sys, pathlib\nfrom kdbench.merging import copying, merge\n"
        "copying.place_folder = lambda *_: os._exit(9)\n"
        "merge([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(source.root), str(out)], check=False)
    assert killed.returncode == 9
    assert any(name.endswith("spec.json") for name in names(out))
    assert RunStore(out).runs() == []
    assert read_store(out).runs == ()
    merge([source.root], out)
    assert [found.run_id for _, found in RunStore(out).runs()] == [spec.run_id]
    assert names(out) == [f"{spec.run_id}/{name}" for name in names(source.root / spec.run_id)]


def test_a_kill_between_old_and_new_is_made_good_by_the_next_merge(source: RunStore, spec: RunSpec, out: Path) -> None:
    RunStore(out).register([spec])
    (out / spec.run_id).rename((out / spec.run_id).with_name(".tmp-old-seed3"))
    assert RunStore(out).runs() == []
    merge([source.root], out)
    assert names(out) == [f"{spec.run_id}/{name}" for name in names(source.root / spec.run_id)]


EVIDENCE = {
    "record.json.corrupt": b"half",
    "record.json.corrupt2": b"half of another one",
    "record.json.failed": b"an earlier failure",
    "record.conflict-01234567.json": b"another result",
    f"checkpoint/p00-e00001-s0000000-{'0' * 16}.pt.corrupt": b"flipped",
}


@pytest.fixture
def failed(spec: RunSpec, record: Record, out: Path) -> RunFolder:
    """Return the target's folder of the run, which failed there, with all that nobody deletes."""
    RunStore(out).register([spec])
    folder = RunStore(out).folder(spec.run_id)
    folder.write_record(record.model_copy(update={"status": "infra_failed", "reason": "out of memory"}))
    folder.checkpoints.mkdir()
    (folder.checkpoints / f"p00-e00001-s0000000-{'1' * 16}.pt").write_bytes(b"superseded")
    for name, data in EVIDENCE.items():
        (folder.path / name).write_bytes(data)
    return folder


def evidence(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder) if name in EVIDENCE}


def test_what_nobody_deletes_stays_when_a_failure_gives_way(
    source: RunStore, spec: RunSpec, record: Record, failed: RunFolder, out: Path
) -> None:
    failure = (failed.path / RECORD).read_bytes()
    (source.root / spec.run_id / "record.json.failed").write_bytes(b"a failure of the source's")
    merge([source.root], out)
    assert failed.peek() == record
    kept = {**EVIDENCE, "record.json.failed": b"a failure of the source's"}
    assert evidence(failed.path) == kept
    assert (failed.path / "record.json.failed2").read_bytes() == EVIDENCE["record.json.failed"]
    assert (failed.path / "record.json.failed3").read_bytes() == failure
    assert [path.suffix for path in failed.checkpoints.iterdir()] == [".corrupt"]
    assert [name for name in names(out) if "/." in name] == []


@pytest.mark.parametrize("error", [StoreError("disk full"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_what_gives_way_is_back_if_the_new_run_cannot_be_placed(
    source: RunStore, failed: RunFolder, out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = {name: (failed.path / name).read_bytes() for name in names(failed.path)}

    def refuse(folder: Path, target: Path) -> None:
        if ".tmp-new-" in folder.name:
            raise error
        place_folder(folder, target)

    monkeypatch.setattr(copying, "place_folder", refuse)
    with pytest.raises(type(error)):
        merge([source.root], out)
    assert {name: (failed.path / name).read_bytes() for name in names(failed.path)} == before
    assert [name for name in names(out) if "/." in name] == []


def test_a_run_that_a_killed_merge_had_hidden_comes_back(
    source: RunStore, spec: RunSpec, record: Record, failed: RunFolder, out: Path
) -> None:
    failure = (failed.path / RECORD).read_bytes()
    hidden = failed.path.with_name(".tmp-old-seed3")
    failed.path.rename(hidden)
    for own in (LOCK, "lease-00001.json", "heartbeat.json"):  # the killed merge's claim
        (hidden / own).touch()
    merge([source.root], out, dry_run=True)
    assert hidden.exists()
    other = source.root / spec.model_copy(update={"seed": 4}).run_id
    merge([other], out, with_unfinished=True)  # one that has nothing to do with it
    assert not hidden.exists()
    assert (failed.path / RECORD).read_bytes() == failure
    assert not [path for path in failed.path.iterdir() if path.name == LOCK or is_lease_file(path.name)]
    merge([source.root], out)
    assert failed.peek() == record
    assert evidence(failed.path) == EVIDENCE
    assert (failed.path / "record.json.failed2").read_bytes() == failure


def test_a_run_that_was_begun_anew_after_it_was_hidden_takes_nothing_away(
    source: RunStore, spec: RunSpec, record: Record, failed: RunFolder, out: Path
) -> None:
    hidden = failed.path.with_name(".tmp-old-seed3")
    failed.path.rename(hidden)
    RunStore(out).register([spec])
    merge([source.root], out)
    assert failed.peek() == record
    assert evidence(failed.path) == EVIDENCE
    assert not hidden.exists()


@pytest.mark.parametrize("name", ["notes.txt", "events/outside", "folder"])
def test_no_link_is_followed_out_of_a_run(
    source: RunStore, spec: RunSpec, out: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "key").write_text("private")
    link = source.root / spec.run_id / name
    link.symlink_to(secret if name == "folder" else secret / "key")
    choice = merge([source.root], out)
    assert choice.copy == {}
    (message,) = choice.damaged
    assert message.startswith(f"{link}: a link to {secret}")
    assert message.endswith("and a merge copies plain files alone")
    assert not out.exists()


def test_a_lock_that_a_kill_left_in_a_source_stays_there(source: RunStore, spec: RunSpec, out: Path) -> None:
    lock = source.root / spec.model_copy(update={"seed": 4}).run_id / LOCK
    lock.touch()
    assert len(merge([source.root], out, with_unfinished=True).copy) == 2
    assert lock.exists()


def test_one_merge_at_a_time(source: RunStore, out: Path) -> None:
    with copying.one_merge(out), pytest.raises(RunBusy, match="another merge is writing to this store"):
        merge([source.root], out)
    merge([source.root], out)


def test_a_run_that_is_being_trained_is_not_touched(source: RunStore, spec: RunSpec, out: Path) -> None:
    RunStore(out).register([spec])
    holder = _hold(out / spec.run_id)
    try:
        with pytest.raises(ProblemList, match="another process is training this run; wait for it or stop it"):
            merge([source.root], out)
    finally:
        holder.kill()
        holder.communicate()
    assert RunFolder(out / spec.run_id).held(only_look=True) is False
    assert list(merge([source.root], out).copy) == [spec.run_id]


def test_an_unfinished_run_that_is_being_trained_does_not_come_along(
    source: RunStore, spec: RunSpec, out: Path
) -> None:
    folder = source.root / spec.model_copy(update={"seed": 4}).run_id
    holder = _hold(folder)
    try:
        with pytest.raises(ProblemList, match="is being trained; wait for it or stop it, or merge without"):
            merge([source.root], out, with_unfinished=True)
        assert list(merge([source.root], out).copy) == [spec.run_id]
    finally:
        holder.kill()
        holder.communicate()


def test_a_failure_does_not_take_the_place_of_a_run_that_may_go_on(
    source: RunStore, spec: RunSpec, record: Record, out: Path
) -> None:
    failed = record.model_copy(update={"status": "infra_failed"})
    (source.folder(spec.run_id).path / RECORD).unlink()
    source.folder(spec.run_id).write_record(failed)
    target = RunStore(out)
    target.register([spec])
    target.folder(spec.run_id).checkpoints.mkdir()
    choice = merge([source.root], out)
    assert (choice.copy, choice.failed) == ({}, [source.root / spec.run_id])
    target.folder(spec.run_id).checkpoints.rmdir()
    assert list(merge([source.root], out).copy) == [spec.run_id]
    assert target.folder(spec.run_id).peek() == failed


def test_an_unreadable_file_is_named(
    source: RunStore, spec: RunSpec, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "curve.bin":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StoreError, match=r"curve.bin: cannot be read \(Input/output error\); merge again when it can"):
        merge([source.root], out)
    assert names(out) == []


def test_of_three_equal_runs_the_first_is_taken(source: RunStore, spec: RunSpec, out: Path, tmp_path: Path) -> None:
    copies = [tmp_path / "b", tmp_path / "c"]
    for copy in copies:
        shutil.copytree(source.root, copy)
    choice = merge([source.root, *copies, source.root], out)
    assert choice.copy[spec.run_id].folder.path == source.root / spec.run_id
    assert choice.repeated == [copy / spec.run_id for copy in copies]


def _hold(folder: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, time, pathlib; from kdbench.store import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).claimed():\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder
