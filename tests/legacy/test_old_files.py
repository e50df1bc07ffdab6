"""Files that earlier versions wrote: stored as they were, and read for ever; what is newer is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from kdbench.artefacts import TeacherManifest, TeacherStore
from kdbench.config.schema import Section
from kdbench.errors import KdbenchError, StoreError
from kdbench.leaderboard.manifest import Manifest
from kdbench.records import Record, parse_json
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.verification.epochs import read_epochs
from kdbench.verification.predictions import read_answers
from kdbench.verification.tables import Board

HERE = Path(__file__).parent
SUMS = HERE / "SHA256SUMS"
VERSIONS = sorted(path.parent for path in HERE.glob("*/runs"))
FILES = sorted(path for path in HERE.glob("*/**/*") if path.is_file() and "__pycache__" not in path.parts)
MODELS: dict[str, type[BaseModel]] = {
    "spec.json": RunSpec, "record.json": Record, "teacher.json": TeacherManifest, "manifest.json": Manifest,
    "leaderboard.json": Board,
}  # fmt: skip
JSON = [path for path in FILES if path.name in MODELS]


def label(path: Path) -> str:
    return path.relative_to(HERE).as_posix()


def test_the_stored_files_are_as_they_were_written() -> None:
    found = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {label(path)}\n" for path in FILES)
    assert found == SUMS.read_text(encoding="utf-8")
    assert {path.name for path in JSON} == set(MODELS)


@pytest.mark.parametrize("path", JSON, ids=label)
def test_it_is_read(path: Path) -> None:
    found = parse_json(MODELS[path.name], path)
    written = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, Section):  # nothing that was written is lost
        said = found.model_dump(mode="json")
        changed = {key for key, value in written.items() if said[key] != value}
        # A spec's anchor has more keys now; the first records had the reference to the dataset for its label.
        assert changed <= {"anchor"} | ({"dataset"} if "dataset_ref" not in written else set())
        assert said.get("dataset_ref", written.get("dataset")) == written.get("dataset_ref", written.get("dataset"))


@pytest.mark.parametrize("path", JSON, ids=label)
def test_a_newer_schema_is_refused(path: Path, tmp_path: Path) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    newer = tmp_path / path.name
    newer.write_text(json.dumps({**tree, "schema_version": tree["schema_version"] + 1, "new": 1}), encoding="utf-8")
    with pytest.raises(StoreError) as caught:
        parse_json(MODELS[path.name], newer)
    kind = MODELS[path.name].__name__.lower()
    assert str(caught.value) == f"{newer}: {kind} schema 2, this kdbench reads 1; upgrade kdbench"


@pytest.mark.parametrize("version", VERSIONS, ids=label)
def test_runs_have_the_hashes_they_were_made_under(version: Path) -> None:
    runs = RunStore(version / "runs").runs()
    assert runs
    for folder, spec in runs:
        record = folder.peek()
        assert record is not None
        assert folder.path.relative_to(version / "runs").as_posix() == spec.run_id == record.run_id
        assert record.config_sha256 == spec.config_sha256
        assert record.anchor_sha256 == spec.anchor.sha256
        reports = read_epochs(folder.path / "epochs.jsonl")
        assert len(reports) == spec.anchor.schedule.epochs
        assert {report.run_id for report in reports} == {spec.run_id}
        answers = read_answers(folder.path / "predictions.npz", record.classes)
        assert record.accuracy is not None
        assert record.accuracy.last == 100 * int(answers.correct.sum()) / len(answers.correct)


@pytest.mark.parametrize("version", [path for path in VERSIONS if (path / "teachers").is_dir()], ids=label)
def test_a_teacher_is_read(version: Path) -> None:
    store = TeacherStore(version / "teachers")
    (manifest,) = store.all()
    assert store.manifest(manifest.dataset, manifest.name) == manifest
    assert len(store.predicted(manifest)) == manifest.test_images
    assert all(tensor.isfinite().all() for tensor in store.weights(manifest).values())


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[[str], CheckpointFolder]:
    """Return a copy of the checkpoints of a version."""

    def copied(version: str) -> CheckpointFolder:
        shutil.copytree(HERE / version / "checkpoint", tmp_path / version)
        return CheckpointFolder(tmp_path / version)

    return copied


def test_a_checkpoint_of_this_schema_is_read(checkpoints: Callable[[str], CheckpointFolder]) -> None:
    state = checkpoints("second").newest()
    assert state is not None
    assert state["schema"] == 2
    assert {"student", "method", "optimizers", "position", "history"} <= state.keys()


def test_a_checkpoint_of_an_older_schema_is_never_guessed_at(checkpoints: Callable[[str], CheckpointFolder]) -> None:
    folder = checkpoints("first")
    (path,) = folder.path.iterdir()
    with pytest.raises(KdbenchError) as caught:
        folder.newest()
    assert str(caught.value) == (
        f"{path}: checkpoint schema 1, this kdbench reads 2; finish the run with the version that started it, or "
        "remove its folder"
    )
    assert path.is_file()
