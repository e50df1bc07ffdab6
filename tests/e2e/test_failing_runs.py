"""Methods that raise, crash, vanish or diverge: what is said, what is kept, and how to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Place, failure, kdbench, snapshot

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
    assert not list(place.runs.rglob("checkpoint"))
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


def test_a_worker_that_vanishes_takes_nobody_with_it(
    place: Place, undisturbed: Place, orders: Callable[..., Path]
) -> None:
    path = orders("leave", once=False)
    words = ["run", *place.cells("student,probe", 1), "--threads", 1]
    assert failure(*words, code=4) == (
        "run proto-v3/digits-20pc/tiny/probe/seed0: its worker ended with exit code 0 and without a result "
        "(2 attempts); everything else is kept. Repair what stopped it or leave it out, and start the same command "
        "again"
    )
    assert place.record("student")["status"] == "ok"
    assert not (place.folder("probe") / "record.json").exists()
    path.unlink()
    student = snapshot(place.folder("student"))
    outcome = kdbench(*words, "--executor", "inline")
    assert outcome.code == 0, outcome
    assert snapshot(place.folder("student")) == student
    assert same_bits(place, undisturbed, "student", "probe")


def test_a_crash_is_named(place: Place, orders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.execution.driver.MAX_ATTEMPTS", 1)
    orders("crash", once=False)
    message = failure("run", *place.cells("probe", 1), "--threads", 1, code=4)
    assert message.startswith(
        "run proto-v3/digits-20pc/tiny/probe/seed0: its worker was killed by signal 11 (Segmentation fault)"
    )
    assert "start the same command again" in message


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
    before = snapshot(place.runs)
    assert kdbench("run", *place.cells("student,runaway", 2), *ONE_PROCESS, "--retry-failed").code == 0
    assert snapshot(place.runs) == before  # diverged is no failure to retry
