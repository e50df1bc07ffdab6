"""kdbench status and cancel: what stands in the folders, whoever fills them."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, failure, kdbench, snapshot

from kdbench.seal import unsealed
from kdbench.storage.heartbeat import HEARTBEAT, Heartbeat, Reached
from kdbench.storage.owner import Owner

CELLS = "proto-v3/digits-20pc/tiny"


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """Return six runs, of which two can be changed into what a test needs."""
    place = Place(tmp_path)
    shutil.copytree(finished.runs, place.runs)
    return place


def undone(place: Place, method: str, seed: int = 0) -> Path:
    folder = place.folder(method, seed)
    for path in folder.iterdir():
        if path.name != "spec.json":
            path.unlink()
    return folder


def running(folder: Path, minutes: float, done: float, silent: float = 0.0, at_start: float = 0.0) -> None:
    """Let a process of another machine be at a run since so many minutes."""
    now = datetime.now(UTC) - timedelta(seconds=silent)
    owner = Owner(host="node7", place="elsewhere", pid=42, job="4711", token="t")
    times = {"started_at": (now - timedelta(minutes=minutes)).isoformat(), "moved_at": now.isoformat()}
    reached = Reached(phase="main", epoch=1, epochs=3, within=0.5, done=done)
    beat = Heartbeat(
        lease=1, owner=owner, attempt=1, beaten_at=now.isoformat(), interval=5, progress=reached,
        share_at_start=at_start, **times,
    )  # fmt: skip
    (folder / "lease-00001.json").write_text(owner.model_dump_json())
    (folder / HEARTBEAT).write_text(beat.model_dump_json())


def change(path: Path, **values: Any) -> None:
    tree, _ = unsealed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps({**tree, **values}), encoding="utf-8")


def test_a_finished_store(place: Place) -> None:
    before = snapshot(place.runs)
    assert kdbench("status", place.runs).out == "6 runs: 6 ok\n"
    assert kdbench("status", place.runs, "--watch").out == "6 runs: 6 ok\n"  # nothing is left to wait for
    assert snapshot(place.runs) == before


def test_every_state_has_its_line(place: Place) -> None:
    running(undone(place, "dkd"), minutes=10, done=0.5)
    running(undone(place, "dkd", 1), minutes=10, done=0.5, silent=90)
    undone(place, "student")
    (undone(place, "student", 1) / "stop").touch()
    change(place.folder("vanilla_kd") / "record.json", status="infra_failed", reason="it broke", accuracy=None)
    (place.folder("vanilla_kd", 1) / "record.json").write_text("{")
    before = snapshot(place.runs)
    lines = kdbench("status", place.runs).out.splitlines()
    assert lines[0].startswith(
        f"damaged   {CELLS}/vanilla_kd/seed1: {place.folder('vanilla_kd', 1)}/record.json: not JSON"
    )
    assert lines[1] == f"failed    {CELLS}/vanilla_kd/seed0: it broke"
    assert lines[2].startswith(f"silent    {CELLS}/dkd/seed1: no sign of life for 9")
    assert lines[3].startswith(f"running   {CELLS}/dkd/seed0: main 2/3 (50%); on node7 pid 42 job 4711; beat ")
    assert lines[4] == f"cancelled {CELLS}/student/seed1"
    assert lines[5].startswith("6 runs: 1 failed, 1 damaged, 1 running, 1 silent, 1 cancelled, 1 waiting; ")
    assert lines[5].endswith(" left")
    assert snapshot(place.runs) == before  # also what is damaged


def test_the_time_left_follows_from_the_pace_of_what_runs(place: Place) -> None:
    """One run did half of itself in ten minutes; its other half and two whole runs are left: fifty minutes."""
    for path in place.runs.rglob("record.json"):
        change(path, ended_at="2020-01-01T00:00:00+00:00")
    running(undone(place, "dkd"), minutes=10, done=0.75, at_start=0.25)
    undone(place, "dkd", 1)
    for seed in (0, 1):
        change_cost(place.folder("vanilla_kd", seed))
        change_cost(place.folder("student", seed))
    tree = json.loads(kdbench("status", place.runs, "--json").out)
    assert tree["seconds_left"] == pytest.approx(10 * 60 * (0.25 + 1) / 0.5, rel=0.02)


def change_cost(folder: Path) -> None:
    cost = json.loads((folder / "record.json").read_text())["cost"]
    change(folder / "record.json", cost={**cost, "train_seconds": 100.0})


def test_json_has_every_run(place: Place) -> None:
    running(undone(place, "dkd"), minutes=1, done=0.5)
    tree = json.loads(kdbench("status", place.runs, "--json").out)
    assert tree["schema_version"] == 1
    assert tree["counts"] == {"ok": 5, "running": 1}
    runs = {run["run_id"]: run for run in tree["runs"]}
    assert len(runs) == 6
    busy, done = runs[f"{CELLS}/dkd/seed0"], runs[f"{CELLS}/student/seed0"]
    assert (busy["state"], busy["heartbeat"]["owner"]["job"], busy["accuracy"]) == ("running", "4711", None)
    assert busy["heartbeat"]["progress"] == {"phase": "main", "epoch": 1, "epochs": 3, "within": 0.5, "done": 0.5}
    assert 0 <= busy["heartbeat_age"] < 60
    assert (done["state"], done["heartbeat"]) == ("ok", None)
    assert done["accuracy"] == place.record("student")["accuracy"]["last"]


def test_cancel_asks_what_is_unfinished(place: Place) -> None:
    running(undone(place, "dkd"), minutes=1, done=0.5)
    undone(place, "student")
    outcome = kdbench("cancel", place.runs)
    assert outcome.out == f"asked to stop: 1 running, 1 waiting; kdbench status {place.runs}\n"
    asked = [path.parent.relative_to(place.runs).as_posix() for path in sorted(place.runs.rglob("stop"))]
    assert asked == [f"{CELLS}/dkd/seed0", f"{CELLS}/student/seed0"]
    assert "asked to stop" in kdbench("status", place.runs).out
    assert kdbench("cancel", place.runs, f"{CELLS}/vanilla_kd/seed0").out.startswith(
        "asked to stop: 0 running, 0 waiting"
    )


def test_cancel_knows_its_runs(place: Place) -> None:
    said = failure("cancel", place.runs, f"{CELLS}/dkd/sed0")
    assert said == (
        f"{place.runs}: has no run '{CELLS}/dkd/sed0'. Did you mean '{CELLS}/dkd/seed0'? All: kdbench status "
        f"{place.runs} --json"
    )
    assert not list(place.runs.rglob("stop"))


def test_no_store() -> None:
    for command in ("status", "cancel"):
        assert failure(command, "nowhere") == "nowhere: no runs there; make some with kdbench run --out nowhere"


def test_a_result_that_contradicts_the_record_is_shown_and_published(place: Place, tmp_path: Path) -> None:
    folder = place.folder("dkd")
    tree, _ = unsealed(place.record("dkd"))
    other = {**tree, "accuracy": {**tree["accuracy"], "last": 1.0}}
    (folder / "record.conflict-0123abcd.json").write_text(json.dumps(other))
    board = kdbench("leaderboard", place.runs, "--out", tmp_path / "board", "--records")
    assert board.code == 0, board
    assert (
        "dkd seed 0: was computed more than once, with different results; the first one stands here, others are beside "
        "its record: record.conflict-0123abcd.json."
    ) in board.out.replace("\\", "")
    assert len(list((tmp_path / "board").rglob("record.conflict-*.json"))) == 1
    verified = kdbench("verify", tmp_path / "board")
    assert verified.code == 0, verified
