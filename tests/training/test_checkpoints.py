"""Checkpoints: whole or absent, found out when damaged, the previous one kept."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.errors import KdbenchError, StoreError
from kdbench.files import TEMPORARY
from kdbench.storage.mirror import Swept
from kdbench.store import RunFolder
from kdbench.training import checkpoint, cohort
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.team.members import Team
from kdbench.training.trainer import Interrupted


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": _flip,
    "truncated": lambda data: data[:-100],
    "zeroed page": lambda data: data[:4096] + bytes(4096) + data[8192:],
    "zero tail": lambda data: data[:-4096] + bytes(4096),
    "empty": lambda _data: b"",
    "longer": lambda data: data + b"\0",
    "foreign": lambda _data: b"not a checkpoint",
}


def _files(folder: CheckpointFolder) -> list[Path]:
    return sorted(folder.path.glob("*.pt"))


def _stop(lab: Any, spec: Any, steps: int = 14) -> CheckpointFolder:
    with pytest.raises(Interrupted):
        lab.run([spec], "cut", should_stop=lab.stop_after(steps))
    return CheckpointFolder(lab.folders([spec], "cut")[0].checkpoints)


def _weights(lab: Any, spec: Any, where: str) -> bytes:
    data: bytes = (lab.folders([spec], where)[0].path / "student.safetensors").read_bytes()
    return data


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_set_aside_and_the_previous_used(lab: Any, damage: str) -> None:
    spec = lab.spec("toy_bank")
    folder = _stop(lab, spec)
    previous, newest = _files(folder)
    data = newest.read_bytes()
    newest.write_bytes(DAMAGES[damage](data))
    (record,) = lab.run([spec], "cut")
    lab.run([spec], "whole")
    assert _weights(lab, spec, "cut") == _weights(lab, spec, "whole")
    aside = newest.with_name(newest.name + ".corrupt")
    assert aside.read_bytes() == DAMAGES[damage](data), "evidence is kept as it was found"
    assert not previous.exists()
    assert not _files(folder)
    assert f"damaged checkpoint set aside: {aside.name}" in record.attempts[-1].outcome
    assert record.status == "ok" or "chance" in record.reason


def test_without_a_sound_one_the_run_starts_over(lab: Any) -> None:
    spec = lab.spec("toy_bank")
    folder = _stop(lab, spec)
    both = _files(folder)
    for path in both:
        path.write_bytes(_flip(path.read_bytes()))
    (record,) = lab.run([spec], "cut")
    lab.run([spec], "whole")
    assert _weights(lab, spec, "cut") == _weights(lab, spec, "whole")
    assert record.attempts[-1].from_epoch == 0
    for path in both:
        assert path.name + ".corrupt" in record.attempts[-1].outcome


def test_what_was_set_aside_is_in_the_record_after_another_stop(lab: Any) -> None:
    spec = lab.spec("toy_bank")
    folder = _stop(lab, spec)
    newest = _files(folder)[-1]
    newest.write_bytes(b"")
    _stop(lab, spec, 3)
    (record,) = lab.run([spec], "cut")
    assert [attempt.outcome.partition(":")[0] for attempt in record.attempts[:2]] == ["Interrupted", "Interrupted"]
    assert newest.name in record.attempts[-1].outcome


def _tensors(value: float) -> dict[str, Any]:
    return {"x": torch.full((1000,), value), "n": 3, "text": "a", "nested": {"list": [1, 2.5, None, True]}}


def test_two_are_kept_and_the_newest_is_returned(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoint")
    assert folder.newest() is None
    for number, position in enumerate([(0, 9, 0), (1, 0, 0), (1, 2, 0), (1, 10, 3), (1, 10, 20)]):
        folder.save(_tensors(number), position)
        assert len(_files(folder)) == min(number + 1, 2)
    state = folder.newest()
    assert state is not None
    assert state["x"].tolist() == [4.0] * 1000
    assert {key: state[key] for key in ("n", "text", "nested")} == {
        key: value for key, value in _tensors(0).items() if key != "x"
    }
    folder.remove()
    assert not folder.path.exists()


def test_the_name_holds_the_hash_of_the_content(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(_tensors(1), (2, 34, 5))
    (path,) = _files(folder)
    assert path.name == f"p02-e00034-s0000005-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"


def test_another_schema_is_a_clear_error_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SCHEMA", 7)
        folder.save(_tensors(1), (0, 1, 0))
    (path,) = _files(folder)
    with pytest.raises(KdbenchError, match=r"\.pt: checkpoint schema 7, this kdbench reads 2; finish the run with"):
        folder.newest()
    assert _files(folder) == [path]


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(_tensors(1), (0, 1, 0))
    leftover = tmp_path / f"{TEMPORARY}4711-p00-e00002-s0000000-0123456789abcdef.pt"
    leftover.write_bytes(b"half")
    assert folder.newest() is not None
    assert not leftover.exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "p00-e00009-s0000000-XYZ.pt").write_bytes(b"not ours")
    folder.save(_tensors(1), (0, 1, 0))
    assert folder.newest() is not None
    folder.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "p00-e00009-s0000000-XYZ.pt"]


def test_a_full_disk_costs_no_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        folder.save(_tensors(epoch), (0, epoch, 0))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kdbench.files.os.fsync", full)
    with pytest.raises(StoreError, match=r"cannot be written .*free some space"):
        folder.save(_tensors(3), (0, 3, 0))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    """R13: not even of one whose name holds its right hash."""
    buffer = io.BytesIO()
    torch.save({"schema": 1, "x": _Evil(tmp_path / "marker")}, buffer)
    name = f"p00-e00001-s0000000-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt"
    (tmp_path / name).write_bytes(buffer.getvalue())
    with pytest.raises(KdbenchError, match=r"\.pt: not a checkpoint of kdbench \(UnpicklingError"):
        CheckpointFolder(tmp_path).newest()
    assert not (tmp_path / "marker").exists()


def test_expanded_tensors_of_a_methods_own_are_written_out(tmp_path: Path) -> None:
    folder, one = CheckpointFolder(tmp_path), torch.arange(3.0)
    folder.save({"method": {"wide": one.expand(4, 3), "pair": (one[:1].expand(2), "a")}, "n": 1}, (0, 1, 0))
    state = folder.newest()
    assert state is not None
    assert torch.equal(state["method"]["wide"], one.repeat(4, 1))
    assert state["method"]["pair"][0].tolist() == [0.0, 0.0]
    assert (state["method"]["pair"][1], state["n"]) == ("a", 1)


def _failing(monkeypatch: pytest.MonkeyPatch, what: str, *paths: Path) -> None:
    """Let the system refuse an operation on some files."""
    original = getattr(Path, what)

    def refuse(self: Path, *arguments: Any, **more: Any) -> Any:
        if self in paths:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, *arguments, **more)

    monkeypatch.setattr(Path, what, refuse)


def test_a_run_goes_on_from_before_one_that_cannot_be_read(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = lab.spec("toy_bank")
    folder = _stop(lab, spec)
    newest = _files(folder)[-1]
    _failing(monkeypatch, "read_bytes", newest)
    (record,) = lab.run([spec], "cut")
    monkeypatch.undo()
    lab.run([spec], "whole")
    assert _weights(lab, spec, "cut") == _weights(lab, spec, "whole")
    said = "cannot be read or set aside (Input/output error); the checkpoint before it is used"
    assert f"{newest}: {said}" in caplog.messages
    assert record.attempts[-1].from_epoch > 0
    assert not folder.path.exists()


def test_one_that_cannot_be_read_costs_no_newer_one_and_is_used_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    for epoch in (8, 9):
        folder.save(_tensors(epoch), (0, epoch, 0))
    with monkeypatch.context() as patch:
        _failing(patch, "read_bytes", *_files(folder))
        assert folder.newest() is None
        for epoch in (1, 2, 3):  # the run begins again
            folder.save(_tensors(epoch), (0, epoch, 0))
        state = folder.newest()
        assert state is not None
        assert state["x"][0] == 3
    assert [path.name[4:10] for path in _files(folder)] == ["e00002", "e00003", "e00008", "e00009"]
    state = folder.newest()
    assert state is not None
    assert state["x"][0] == 9


def test_a_damaged_one_that_cannot_be_renamed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        folder.save(_tensors(epoch), (0, epoch, 0))
    newest = _files(folder)[-1]
    newest.write_bytes(b"")
    _failing(monkeypatch, "rename", newest)
    state = folder.newest()
    assert state is not None
    assert state["x"][0] == 1
    assert newest.exists()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, "iterdir", tmp_path)
    with pytest.raises(StoreError) as caught:
        CheckpointFolder(tmp_path).newest()
    assert str(caught.value) == f"{tmp_path}: cannot be read (Input/output error)"


def test_old_ones_that_cannot_be_removed_are_the_stores_fault(
    lab: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".pt" and not self.name.startswith(TEMPORARY):
            raise OSError(errno.EACCES, "Permission denied")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    (record,) = lab.run([lab.spec("toy_bank")], "runs")
    assert record.status != "infra_failed"
    assert record.attempts[-1].outcome.endswith("checkpoints could not be saved")
    assert any(".pt: cannot be written (Permission denied); choose another folder" in said for said in caplog.messages)
    assert caplog.messages[-1].endswith("cannot be removed (Permission denied); remove the folder")


def test_a_run_whose_copy_somebody_removes_stops_at_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result could not be kept either; a full disk may have room for that."""
    saves: list[object] = []

    def gone(*arguments: object) -> None:
        saves.append(arguments)
        raise Swept("somebody has removed this copy")

    monkeypatch.setattr(CheckpointFolder, "save", gone)
    spec = lab.spec("student")
    with pytest.raises(Swept):
        lab.run([spec], "runs")
    assert len(saves) == 1
    assert lab.folders([spec], "runs")[0].record() is None


def test_a_team_that_reads_different_checkpoints_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One member's disk failed, and it went back to the checkpoint before."""
    team, folder = Team(0, 2), RunFolder(tmp_path)
    state: dict[str, Any] = {"position": [0, 2, 0]}
    lane: Any = SimpleNamespace(active=True)
    monkeypatch.setattr(Team, "everyones", lambda _self, mine: [mine, mine])
    cohort._check_same_checkpoint(lane, state, folder, team)
    cohort._check_same_checkpoint(lane, None, folder, team)
    monkeypatch.setattr(Team, "everyones", lambda _self, mine: [mine, (False, None)])
    cohort._check_same_checkpoint(lane, state, folder, team)  # the other's method failed, and says so elsewhere
    monkeypatch.setattr(Team, "everyones", lambda _self, mine: [mine, (True, [0, 1, 0])])
    for found in (state, None):
        with pytest.raises(StoreError, match=r"checkpoint: the devices of the run cannot all read the same checkpoint"):
            cohort._check_same_checkpoint(lane, found, folder, team)


def test_checkpoints_that_cannot_be_listed_do_not_end_a_run_whose_result_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_self: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", refuse)
    CheckpointFolder(tmp_path).remove()
    assert "checkpoints that nobody needs cannot be removed" in caplog.messages[-1]
