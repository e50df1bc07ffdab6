"""Killed, terminated or interrupted: the same command goes on and ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, finish, kdbench, start

METHODS = ("student", "probe")


def words(place: Place) -> list[object]:
    return ["run", *place.cells("student,probe", 1), "--threads", 1]


def scores(place: Place) -> Any:
    """Return what the leaderboard says of each run."""
    out = place.root / "board"
    assert kdbench("leaderboard", place.runs, "--out", out, "--format", "json").code == 0
    (table,) = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))["tables"]
    return {row["method"]: [(run["seed"], run["status"], run["score"]) for run in row["runs"]] for row in table["rows"]}


def check_unfinished(place: Place) -> None:
    for method in METHODS:
        folder = place.folder(method)
        assert not (folder / "record.json").exists()
        assert list((folder / "checkpoint").glob("*.pt"))
    assert "2 runs, 2 to do" in kdbench("plan", *place.cells("student,probe", 1)).out


def check_equal(place: Place, undisturbed: Place) -> None:
    for method in METHODS:
        mine, other = place.folder(method), undisturbed.folder(method)
        assert sorted(path.name for path in mine.iterdir()) == sorted(path.name for path in other.iterdir())
        for name in ("student.safetensors", "predictions.npz", "spec.json"):
            assert (mine / name).read_bytes() == (other / name).read_bytes(), (method, name)
        for key in ("accuracy", "nll", "ece", "agreement_with_teacher", "teachers", "config_sha256", "status"):
            assert place.record(method)[key] == undisturbed.record(method)[key], (method, key)
    assert scores(place) == scores(undisturbed)


def test_killed_driver_and_worker(
    undisturbed: Place, finished: Place, orders: Callable[..., Path], tmp_path: Path
) -> None:
    place = Place(tmp_path).with_teachers_of(finished)
    path = orders("kill_both")
    assert finish(start(*words(place))).code == -9
    assert not path.exists()  # it was the probe, in its second epoch
    check_unfinished(place)
    outcome = kdbench(*words(place), "--executor", "inline")
    assert outcome.code == 0, outcome
    assert " main 1/3" not in outcome.out  # it did not begin anew
    check_equal(place, undisturbed)
    first, second = place.record("student")["attempts"]
    assert first["outcome"] == "killed"
    assert (second["outcome"], second["from_epoch"]) == ("ok", 1)


@pytest.mark.parametrize("what", ["terminate_driver", "interrupt_group"])
def test_stopped_driver(
    what: str, undisturbed: Place, finished: Place, orders: Callable[..., Path], tmp_path: Path
) -> None:
    place = Place(tmp_path).with_teachers_of(finished)
    orders(what)
    outcome = finish(start(*words(place), group=True))
    assert outcome.code == 75
    assert outcome.err.strip() == "kdbench: stopped; the same command continues where it was"
    check_unfinished(place)
    assert not list(place.runs.rglob("run.lock"))
    executor = "local" if what == "terminate_driver" else "inline"
    outcome = kdbench(*words(place), "--executor", executor)
    assert outcome.code == 0, outcome
    check_equal(place, undisturbed)
    first, second = place.record("probe")["attempts"]
    assert first["outcome"].startswith("Interrupted: stopped; every run was saved")
    assert second["outcome"] == "ok"
