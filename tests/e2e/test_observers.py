"""What plugins see of runs, what happens when they fail while looking, and what they may print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Place, installed, kdbench, write_plugin

WATCHER = """
import json, os
from pathlib import Path
import kdbench

def note(text):
    with Path(os.environ["WATCHED"]).open("a", encoding="utf-8") as file:
        file.write(text + "\\n")

@kdbench.hookimpl
def kdbench_epoch_ended(report):
    note(f"{report.run_id.split('/')[3]} {report.epoch} {report.test_accuracy}")
    for junk in ('{"kind": "record", "data": {}}', '{"kind": ["x"], "data": 3}', "[1]", '{"kind": "epoch"}'):
        print(junk)
    print("half a line", end="")

@kdbench.hookimpl
def kdbench_run_finished(record):
    note(f"finished {record.method} {record.status} {record.accuracy.last}")
"""
FAILING = """
import kdbench

@kdbench.hookimpl
def kdbench_epoch_ended(report):
    raise RuntimeError("fell over")

@kdbench.hookimpl
def kdbench_run_finished(record):
    1 / 0
"""


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    return Place(tmp_path / "place").with_teachers_of(finished)


def bits(place: Place) -> bytes:
    return (place.folder("student") / "student.safetensors").read_bytes()


def test_watchers_see_every_epoch_and_may_print_anything(
    place: Place, finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHED", str(tmp_path / "watched"))
    with installed(write_plugin(tmp_path / "site", "watcher", WATCHER)):
        outcome = kdbench("run", *place.cells("student", 1), "--threads", 1)  # in a worker: its output is parsed
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    lines = (place.folder("student") / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    accuracies = [json.loads(line)["test_accuracy"] for line in lines]
    assert (tmp_path / "watched").read_text(encoding="utf-8").splitlines() == [
        *(f"student {epoch} {accuracy}" for epoch, accuracy in enumerate(accuracies)),
        f"finished student ok {accuracies[-1]}",
    ]
    assert bits(place) == bits(finished)


@pytest.mark.parametrize("executor", ["local", "inline"])
def test_a_failing_watcher_is_named_and_costs_no_run(
    executor: str, place: Place, finished: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with installed(write_plugin(tmp_path / "site", "falling", FAILING)):
        outcome = kdbench("run", *place.cells("student", 1), "--threads", 1, "--executor", executor)
    assert outcome.code == 0, outcome
    assert bits(place) == bits(finished)
    told = outcome.out if executor == "local" else caplog.text
    for text in (
        "plugin 'falling': kdbench_epoch_ended failed: RuntimeError: fell over; the runs go on without it",
        "plugin 'falling': kdbench_run_finished failed: ZeroDivisionError: division by zero; the runs go on without it",
    ):
        assert told.count(text) == 1  # once, not after every epoch
