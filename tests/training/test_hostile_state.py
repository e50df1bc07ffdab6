"""Checkpoints, attempts and teachers' files made to harm, with hashes that fit: refused, and never guessed at."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.artefacts import MANIFEST, PREDICTIONS, WEIGHTS, TeacherStore
from kdbench.errors import KdbenchError
from kdbench.seal import sealed
from kdbench.store import RunFolder
from kdbench.training.attempts import earlier
from kdbench.training.checkpoint import SCHEMA, CheckpointFolder


class Touch:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch owned",)


def saved(tree: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def compressed(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    return out.getvalue()


def overlapping(data: bytes) -> bytes:
    """Return a file whose directory names one entry a thousand times."""
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        item = archive.getinfo("archive/data/0")
        archive.writestr("archive/data/last", b"")  # so that the directory is written again
        archive.filelist += [item] * 1000
    return out.getvalue()


def flipped(data: bytes) -> bytes:
    """Flip a bit of the first tensor; the file's name fits, the archive's checksum does not."""
    place = data.index(torch.full((64,), 7.0).numpy().tobytes()) + 3
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


GOOD = {"schema": SCHEMA, "student": {"w": torch.full((64,), 7.0)}, "history": []}
CYCLE: dict[str, Any] = {"schema": SCHEMA, "student": {}}
CYCLE["student"]["itself"] = CYCLE
HARMFUL: dict[str, tuple[Callable[[], bytes], str]] = {
    "code": (lambda: saved({**GOOD, "x": Touch()}), "not a checkpoint of kdbench (UnpicklingError: "),
    "compressed": (lambda: compressed(saved(GOOD)), "with compressed entries is not one torch wrote; refused"),
    "overlapping": (lambda: overlapping(saved(GOOD)), "its entries claim "),
    "flipped bit": (lambda: flipped(saved(GOOD)), "damaged: checksum of archive/data/0 is wrong"),
    "text": (lambda: b"hello", "not a checkpoint of kdbench ("),
    "empty": (lambda: b"", "not a checkpoint of kdbench (EOFError"),
    "list": (lambda: saved([GOOD]), f"checkpoint schema list, this kdbench reads {SCHEMA}"),
    "newer": (lambda: saved({**GOOD, "schema": SCHEMA + 1}), f"schema {SCHEMA + 1}, this kdbench reads {SCHEMA}"),
    "unversioned": (lambda: saved({}), f"checkpoint schema None, this kdbench reads {SCHEMA}"),
    "claims": (
        lambda: saved({**GOOD, "deep": [{"w": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}]}),
        "(a tensor is claims (1000000, 1000000), more than the file holds)",
    ),
    "meta": (lambda: saved({**GOOD, "w": torch.empty(9, device="meta")}), "(a tensor is not a plain dense tensor)"),
}


def folder_with(data: bytes, place: Path) -> tuple[CheckpointFolder, Path]:
    place.mkdir()
    path = place / f"p00-e00001-s0000001-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    path.write_bytes(data)
    return CheckpointFolder(place), path


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = HARMFUL[kind]
    folder, path = folder_with(make(), tmp_path / "checkpoint")
    with pytest.raises(KdbenchError) as caught:
        folder.newest()
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "finish the run with the version that started it, or remove its folder" in str(caught.value)
    assert path.is_file()  # it is not damaged: nothing was set aside
    assert not Path("owned").exists()


def test_a_good_checkpoint_and_one_that_holds_itself(tmp_path: Path) -> None:
    state = folder_with(saved(GOOD), tmp_path / "good")[0].newest()
    assert state is not None
    assert state["student"]["w"].eq(7).all()
    assert folder_with(saved(CYCLE), tmp_path / "cycle")[0].newest() is not None


@pytest.mark.parametrize("text", ["5", "null", "true", "[3]", '{"a": 1}', "[" * 5000, "[{}]", "", "\x00", '"x"'])
def test_attempts_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "attempts.json").write_text(text, encoding="utf-8")
    assert earlier(RunFolder(tmp_path)) == ()


@pytest.fixture
def store(lab: Any, tmp_path: Path) -> TeacherStore:
    """Return a copy of the teachers, which the lab then uses."""
    copy = TeacherStore(tmp_path / "copied")
    shutil.copytree(lab.place.teachers.root, copy.root)
    return copy


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:99])


def _short(path: Path) -> None:
    np.savez(path, correct=np.zeros(1, np.uint8), predicted=np.zeros(3, np.uint8), count=3)


@pytest.mark.parametrize(
    ("damage", "message", "older"),
    [
        (lambda path: path.unlink(), "missing; ", "not the predictions of a network ([Errno 2]"),
        (_truncate, "corrupt: sha256 is ", "not the predictions of a network (half-written"),
        (_short, "corrupt: sha256 is ", "has 3 predictions, teacher.json beside it says "),
    ],
)
@pytest.mark.parametrize("hashed", [True, False])
def test_a_teachers_damaged_predictions_are_found_before_training(
    lab: Any, store: TeacherStore, damage: Callable[[Path], None], message: str, older: str, *, hashed: bool
) -> None:
    (manifest,) = [found for found in store.all() if found.name == lab.teacher]
    path = store.folder(manifest.dataset, manifest.name) / PREDICTIONS
    if not hashed:  # as manifests were written at first
        manifest = manifest.model_copy(update={"predictions_sha256": ""})
        path.with_name(MANIFEST).write_text(sealed(manifest), encoding="utf-8")
    damage(path)
    steps = []
    with pytest.raises(KdbenchError) as caught:
        lab.run([lab.spec("vanilla_kd")], "runs", teachers=store, should_stop=lambda: bool(steps.append(1)))
    assert str(caught.value).startswith(f"{path}: {message if hashed else older}")
    assert steps == []


@pytest.mark.parametrize("data", [b"", b"{}" * 50, b"\xff" * 8, b"\x08" + bytes(7) + b"{}      "])
def test_weights_that_are_none_although_their_hash_fits(lab: Any, store: TeacherStore, data: bytes) -> None:
    (manifest,) = [found for found in store.all() if found.name == lab.teacher]
    path = store.folder(manifest.dataset, manifest.name) / WEIGHTS
    path.write_bytes(data)
    forged = manifest.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    if data.endswith(b"{}      "):
        assert store.weights(forged) == {}  # a whole file of no tensors; what it lacks is named when it is loaded
        return
    with pytest.raises(KdbenchError, match="not the weights of a network"):
        store.weights(forged)
