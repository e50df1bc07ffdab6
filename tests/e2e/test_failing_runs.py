"""Methods that raise, crash, vanish or diverge: what is said, what is kept, and how to go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commandline import PROTO, Outcome, Place, installed, kdbench, snapshot, write_plugin

ONE_PROCESS = ("--threads", 1, "--executor", "inline")


def same_bits(place: Place, other: Place, *methods: str) -> bool:
    files = [(p.folder(m) / "student.safetensors").read_bytes() for m in methods for p in (place, other)]
    return files[0::2] == files[1::2]


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    return Place(tmp_path / "place").with_teachers_of(finished)


def test_a_method_that_raises_ends_its_own_run_only(
    place: Place, undisturbed: Place, orders: Callable[..., Path]
) -> None:
    path = orders("fail", once=False)
    words = ["run", *place.cells("student,probe", 1), "--threads", 1]
    outcome = kdbench(*words)  # in a worker
    assert outcome.code == 4
    assert "1 ok, 0 diverged, 1 failed;" in outcome.out
    reason = "method 'probe' failed in phase 'main', epoch 2: RuntimeError: the probe was told to fail"
    assert outcome.err == f"failed proto-v3/digits-20pc/tiny/probe/seed0: {reason}\n"
    record = place.record("probe")
    assert (record["status"], record["reason"], record["accuracy"]) == ("infra_failed", reason, None)
    assert same_bits(place, undisturbed, "student")
    assert not (place.folder("probe") / "student.safetensors").exists()
    assert not (place.folder("student") / "checkpoint").exists()
    board = kdbench("leaderboard", place.runs, "--out", place.root / "board")
    assert board.code == 0
    assert "probe" in board.out

    before = snapshot(place.runs)
    path.unlink()
    outcome = kdbench(*words)
    assert outcome.code == 4  # a failed run is finished: it is not tried again unasked
    assert snapshot(place.runs) == before
    outcome = kdbench(*words, "--retry-failed", "--executor", "inline")
    assert outcome.code == 0, outcome
    assert "2 ok, 0 diverged, 0 failed;" in outcome.out
    assert "student/seed0" not in outcome.out
    assert same_bits(place, undisturbed, "student", "probe")
    assert not list(place.runs.rglob("checkpoint"))
    assert [attempt["outcome"] for attempt in place.record("probe")["attempts"]] == [reason, "ok"]


def test_a_worker_that_vanishes_takes_nobody_with_it(
    place: Place, undisturbed: Place, orders: Callable[..., Path]
) -> None:
    path = orders("leave", once=False)
    words = ["run", *place.cells("student,probe", 1), "--threads", 1]
    outcome = kdbench(*words)
    assert outcome.code == 4
    assert "1 ok, 0 diverged, 1 failed;" in outcome.out
    run_id = "proto-v3/digits-20pc/tiny/probe/seed0"
    assert outcome.err == (
        f"failed {run_id}: run {run_id}: its worker ended with exit code 0 and without a result (2 attempts); "
        "everything else is kept. Repair what stopped it, and start the same command again with --retry-failed\n"
    )
    assert place.record("student")["status"] == "ok"
    assert place.record("probe")["status"] == "infra_failed"
    path.unlink()
    student = snapshot(place.folder("student"))
    outcome = kdbench(*words, "--retry-failed", "--executor", "inline")
    assert outcome.code == 0, outcome
    assert snapshot(place.folder("student")) == student
    assert same_bits(place, undisturbed, "student", "probe")


def test_a_crash_is_named(place: Place, orders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.execution.driver.MAX_ATTEMPTS", 1)
    orders("crash", once=False)
    outcome = kdbench("run", *place.cells("probe", 1), "--threads", 1)
    assert outcome.code == 4
    assert "its worker was killed by signal 11 (Segmentation fault)" in outcome.err
    assert "its worker was killed by signal 11 (Segmentation fault)" in place.record("probe")["reason"]
    assert "Traceback" not in outcome.err


def test_a_diverging_method_is_a_result(place: Place, orders: Callable[..., Path]) -> None:
    outcome = kdbench("run", *place.cells("student,runaway", 2), *ONE_PROCESS)
    assert outcome.code == 0, outcome
    assert "2 ok, 2 diverged, 0 failed;" in outcome.out
    record = place.record("runaway", 1)
    assert (record["status"], record["reason"]) == ("diverged", "non-finite loss in phase 'main', epoch 2")
    assert record["nll"] is None
    epochs = (place.folder("runaway") / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["losses"]["total"] is None for line in epochs] == [False, True]
    board = kdbench("leaderboard", place.runs, "--out", place.root / "board", "--format", "md,json")
    assert board.code == 0
    (row,) = [line.split("|") for line in board.out.splitlines() if line.startswith("| runaway")]
    assert row[2].strip() == "0/2 (2 diverged)"
    (table,) = json.loads((place.root / "board/leaderboard.json").read_text(encoding="utf-8"))["tables"]
    assert {r["method"]: [run["status"] for run in r["runs"]] for r in table["rows"]} == {
        "student": ["ok", "ok"],
        "runaway": ["diverged", "diverged"],
    }
    assert kdbench("leaderboard", place.runs, "--out", place.root / "public", "--records").code == 0
    assert kdbench("verify", place.root / "public").code == 0
    before = snapshot(place.runs)
    assert kdbench("run", *place.cells("student,runaway", 2), *ONE_PROCESS, "--retry-failed").code == 0
    assert snapshot(place.runs) == before  # diverged is no failure to retry


FICKLE = """
import kdbench
from kdbench.methods.student import Student

class Fickle(Student):
    name = "fickle"
    baseline = False

    def losses(self, batch):
        {line}
        return super().losses(batch)

@kdbench.hookimpl
def kdbench_methods():
    return [Fickle]
"""


def test_a_repaired_plugin_is_the_one_in_the_record(place: Place, tmp_path: Path) -> None:
    words = ["run", *place.cells("fickle", 1), *ONE_PROCESS]
    with installed(write_plugin(tmp_path / "old", "fickle_plugin", FICKLE.format(line="1 / (batch.progress == 0)"))):
        assert kdbench(*words).code == 4
    assert place.record("fickle")["plugin"]["version"] == "1.0"
    with installed(write_plugin(tmp_path / "new", "fickle_plugin", FICKLE.format(line="pass"), "2.0")):
        assert kdbench(*words, "--retry-failed").code == 0
    source = (tmp_path / "new" / "fickle_plugin.py").read_bytes()
    assert place.record("fickle")["plugin"] == {
        "distribution": "fickle_plugin",
        "version": "2.0",
        "file_sha256": hashlib.sha256(source).hexdigest(),
    }


def test_an_unfinished_run_follows_its_dataset(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez("data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)

    def run(path: str) -> Outcome:
        where = ("--pair", "tiny", "--seeds", 1, "--anchor", PROTO, "--dataset", f"npz:{path}")
        return kdbench("run", "--method", "student", *where, *ONE_PROCESS)

    assert run("data.npz").code == 0
    (record,) = Path("runs").rglob("record.json")
    Path("else").mkdir()
    Path("data.npz").rename("else/data.npz")
    spec = record.with_name("spec.json").read_bytes()
    assert run("else/data.npz").code == 0
    assert record.with_name("spec.json").read_bytes() == spec  # of a finished run nothing changes
    record.unlink()
    outcome = run("else/data.npz")
    assert outcome.code == 0, outcome
    assert json.loads(record.read_text(encoding="utf-8"))["dataset_ref"]["name"] == "npz:else/data.npz"
