"""Atomic writing: the old file or the new one, nothing in between, and one message for what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import StoreError
from kdbench.files import (
    TEMPORARY,
    cannot_write,
    create_exclusive,
    set_aside,
    sweep_dead,
    sweep_temporary,
    write_atomic,
)


def raising(error: BaseException) -> Callable[..., object]:
    def fail(*_arguments: object, **_options: object) -> object:
        raise error

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["text: \u00e9\n", b"\x00\xff", "", b""])
def test_writes_and_replaces(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, "old")
    write_atomic(path, data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "(No space left on device); free some space and start again",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "(Disk quota exceeded); free some space and start again"),
        (
            OSError(errno.EROFS, "Read-only file system"),
            "(Read-only file system); choose another folder and start again",
        ),
        (OSError("strange"), "(strange); choose another folder and start again"),
    ],
)
def test_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: OSError, said: str
) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, "old")
    owner = os if function == "fsync" else Path
    monkeypatch.setattr(owner, function, raising(error))
    with pytest.raises(StoreError) as caught:
        write_atomic(path, "new")
    assert str(caught.value) == f"{path}: cannot be written {said}"
    assert caught.value.exit_code == 73
    assert path.read_text() == "old"
    assert names(tmp_path) == ["record.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", raising(error))
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("old", ["f"])


def test_a_disk_that_is_really_full() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(StoreError, match=r"/dev/full: cannot be written \(No space left"), cannot_write(full):
        full.write_bytes(b"x" * 10)


def test_the_data_are_on_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        folder = os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: PTH112
        steps.append("fsync folder" if folder else f"fsync file, name says {path.read_text()}")
        fsync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename within {self.parent == target.parent}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_atomic(path, "new")
    assert steps == ["fsync file, name says old", "rename within True", "fsync folder"]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(StoreError, match=r"runs/spec.json: cannot be written \(.*\); choose another folder"):
        write_atomic(tmp_path / "runs" / "spec.json", "x")
    assert (tmp_path / "runs").read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", "old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            write_atomic(tmp_path / "f", "new")
        assert (tmp_path / "f").read_text() == "old"
    finally:
        tmp_path.chmod(0o700)


def test_sweep_takes_only_what_writers_left(tmp_path: Path) -> None:
    for name in (f"{TEMPORARY}123-record.json", f"{TEMPORARY}9-x", "record.json", ".hidden", "x.tmp-1"):
        (tmp_path / name).touch()
    sweep_temporary(tmp_path)
    assert names(tmp_path) == [".hidden", "record.json", "x.tmp-1"]
    sweep_temporary(tmp_path / "nowhere")


def test_without_a_lock_only_dead_writers_files_are_swept(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    kept = [tmp_path / name for name in (f"{TEMPORARY}{os.getpid()}-a", f"{TEMPORARY}1-b", f"{TEMPORARY}x-c", "d")]
    dead = tmp_path / f"{TEMPORARY}{done.pid}-leaderboard.md"
    for path in (*kept, dead):
        path.touch()
    sweep_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    sweep_dead(tmp_path / "missing")


def test_a_killed_writers_file_is_one_the_sweep_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(KeyboardInterrupt()))
    monkeypatch.setattr(Path, "unlink", lambda *_a, **_k: None)  # as if the process were gone
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "f", "new")
    monkeypatch.undo()
    assert len(names(tmp_path)) == 1
    sweep_temporary(tmp_path)
    assert names(tmp_path) == []


def test_set_aside_never_overwrites(tmp_path: Path) -> None:
    moved = []
    for content in ("a", "b", "c"):
        (tmp_path / "r").write_text(content)
        moved.append(set_aside(tmp_path / "r"))
    assert [path.name for path in moved] == ["r.corrupt", "r.corrupt2", "r.corrupt3"]
    assert [path.read_text() for path in moved] == ["a", "b", "c"]


@pytest.mark.parametrize("links", [True, False])
def test_the_first_one_creates_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:  # as on a memory stick, and on some mounts
        monkeypatch.setattr(os, "link", raising(OSError(errno.EPERM, "Operation not permitted")))
    path = tmp_path / "folder" / "file"
    assert create_exclusive(path, b"first")
    assert not create_exclusive(path, b"second")
    assert (path.read_bytes(), names(path.parent)) == (b"first", ["file"])


def test_of_many_that_create_a_file_one_does(tmp_path: Path) -> None:
    path, start, done = tmp_path / "file", threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        done.append((create_exclusive(path, b"%d" % number), number))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((_, winner),) = [entry for entry in done if entry[0]]
    assert (path.read_bytes(), names(tmp_path)) == (b"%d" % winner, ["file"])


def test_what_need_not_last_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", raising(AssertionError("synced")))
    write_atomic(tmp_path / "f", "x", durable=False)
    assert (tmp_path / "f").read_text() == "x"
