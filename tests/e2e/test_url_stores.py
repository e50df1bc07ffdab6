"""Stores at URLs: the same bits as in a folder, and every command reads them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, failure, kdbench

from kdbench.seal import unsealed
from kdbench.storage.places import SCRATCH_VARIABLE, Url
from kdbench.storage.shelf import Shelf
from kdbench.storage.url_shelf import shelf_at

CELLS = "proto-v3/digits-20pc/tiny"
TEACHER = "digits-20pc/resnet14_w8-proto-v3-seed0"
_numbers = itertools.count()


@dataclass(frozen=True)
class Distant:
    """Runs and teachers at URLs below one."""

    url: str

    @property
    def shelf(self) -> Shelf:
        return shelf_at(Url(self.url))

    def words(self, methods: str, *more: object) -> list[object]:
        return ["run", *Place(Path()).cells(methods, 1), "--threads", 1, "--out", f"{self.url}/runs",
                "--teachers", f"{self.url}/teachers", *more]  # fmt: skip

    def file(self, name: str) -> bytes:
        data = self.shelf.read(name)
        assert data is not None, name
        return data

    def run(self, method: str, name: str) -> bytes:
        return self.file(f"runs/{CELLS}/{method}/seed0/{name}")

    def record(self, method: str) -> Any:
        return unsealed(json.loads(self.run(method, "record.json")))[0]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def give_teacher(distant: Distant, finished: Place) -> None:
    for path in (finished.teachers / TEACHER).iterdir():
        if path.is_file():
            distant.shelf.write(f"teachers/{TEACHER}/{path.name}", path.read_bytes())


def check_equal(distant: Distant, method: str, finished: Place) -> None:
    for name in ("student.safetensors", "predictions.npz", "spec.json"):
        assert distant.run(method, name) == (finished.folder(method) / name).read_bytes(), (method, name)
    for key in ("accuracy", "nll", "ece", "agreement_with_teacher", "teachers", "config_sha256", "status"):
        assert distant.record(method)[key] == finished.record(method)[key], (method, key)
    here = sorted(path.name for path in finished.folder(method).iterdir())
    assert distant.shelf.at(f"runs/{CELLS}/{method}/seed0").names() == here


def test_a_board_in_memory(finished: Place, tmp_path: Path, scratch: Path) -> None:
    """Teacher, runs, and every command that reads them; nothing is trained twice, and nothing is left here."""
    distant = Distant(f"memory://kdbench-{next(_numbers)}")
    outcome = kdbench(*distant.words("student,dkd", "--executor", "inline"))
    assert outcome.code == 0, outcome
    assert outcome.out.count("teacher resnet14_w8") == 1
    for method in ("student", "dkd"):
        check_equal(distant, method, finished)
    assert (
        distant.file(f"teachers/{TEACHER}/weights.safetensors")
        == (finished.teachers / TEACHER / "weights.safetensors").read_bytes()
    )
    assert "checkpoint" not in distant.shelf.at(f"teachers/{TEACHER}/training").names()
    assert not [path for path in scratch.glob(f"process-*/{CELLS}/*/*/*") if path.suffix in {".pt", ".lock"}]

    assert "2 ok, 0 diverged, 0 failed" in kdbench(*distant.words("student,dkd", "--executor", "inline")).out
    assert [distant.record(method)["attempts"][1:] for method in ("student", "dkd")] == [[], []]
    runs = f"{distant.url}/runs"
    assert kdbench("status", runs).out == "2 runs: 2 ok\n"
    board = kdbench("leaderboard", runs, "--out", tmp_path / "board", "--records")
    assert board.code == 0, board
    assert "dkd" in kdbench("compare", "dkd", "student", runs).out
    assert "resnet14_w8-proto-v3-seed0" in kdbench("teacher", "list", "--teachers", f"{distant.url}/teachers").out
    published = Distant(f"file://{tmp_path}")
    verified = kdbench("verify", f"{published.url}/board")
    assert verified.code == 0, verified


def test_a_damaged_record_and_teacher_are_made_again(finished: Place) -> None:
    distant = Distant(f"memory://kdbench-{next(_numbers)}")
    give_teacher(distant, finished)
    kdbench(*distant.words("dkd", "--executor", "inline"))
    run = f"runs/{CELLS}/dkd/seed0"
    distant.shelf.write(f"{run}/record.json", distant.file(f"{run}/record.json")[:100])
    weights = distant.file(f"teachers/{TEACHER}/weights.safetensors")
    distant.shelf.write(f"teachers/{TEACHER}/predictions.npz", b"damaged")
    outcome = kdbench(*distant.words("dkd", "--executor", "inline"))
    assert outcome.code == 0, outcome
    assert distant.file(f"teachers/{TEACHER}/weights.safetensors") == weights
    assert len(distant.file(f"{run}/record.json.corrupt")) == 100
    assert distant.record("dkd")["accuracy"] == finished.record("dkd")["accuracy"]


def test_urls_that_cannot_be_used_are_refused_before_any_work() -> None:
    said = failure(*Distant("nonsense://x").words("student"), "--executor", "inline")
    assert said.startswith(
        "nonsense://x/teachers: not a place that can be reached (Protocol not known: nonsense); give a"
    )
