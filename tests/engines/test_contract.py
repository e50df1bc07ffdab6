"""The same scenarios on every engine: whatever happens, the results are the same bits, and nothing is done twice."""

from __future__ import annotations

from typing import Any

from commandline import Outcome, Place, finish, kdbench, snapshot, start
from contract import ALONE, BOARD, Engine, Held, attempts, check_equal, interrupt, kill, notes
from slurm_cluster import until


def test_results_are_those_of_one_process(board: tuple[Place, Outcome], undisturbed: Place) -> None:
    place, outcome = board
    assert outcome.code == 4, outcome  # one method fails
    assert "3 ok, 0 diverged, 1 failed" in outcome.out, outcome
    assert outcome.out.count("teacher resnet14_w8") == 1, outcome
    check_equal(place, undisturbed, "vanilla_kd", "kills", "stops")
    for mine in sorted(place.teachers.rglob("*.safetensors")):
        assert mine.read_bytes() == (undisturbed.teachers / mine.relative_to(place.teachers)).read_bytes()
    assert "vanilla_kd" in scores(place)
    assert {name: scores(undisturbed)[name] for name in ("vanilla_kd", "kills", "stops")} == {
        name: scores(place)[name] for name in ("vanilla_kd", "kills", "stops")
    }


def scores(place: Place) -> Any:
    """Return what the leaderboard says of each run."""
    import json

    out = place.root / "board"
    assert kdbench("leaderboard", place.runs, "--out", out, "--format", "json").code == 0
    (table,) = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))["tables"]
    return {row["method"]: [(run["seed"], run["status"], run["score"]) for run in row["runs"]] for row in table["rows"]}


def test_events_arrive(board: tuple[Place, Outcome]) -> None:
    _, outcome = board
    for method in ("vanilla_kd", "kills", "stops"):
        assert f"tiny/{method}/seed0: " in outcome.out
        assert f"tiny/{method}/seed0 main 3/3: loss " in outcome.out


def test_an_exception_is_recorded_and_not_tried_again(board: tuple[Place, Outcome]) -> None:
    place, outcome = board
    record = place.record("fails")
    assert record["status"] == "infra_failed"
    assert "told to fail" in record["reason"]
    assert len(record["attempts"]) == 1
    assert "told to fail" in outcome.err


def test_runs_of_a_killed_worker_go_on_one_by_one(board: tuple[Place, Outcome]) -> None:
    assert attempts(board[0], "kills") == ["killed", "ok"]


def test_a_stopped_worker_has_saved_and_goes_on(board: tuple[Place, Outcome]) -> None:
    """Its first worker was killed with that of the other method; in the second one it was told to stop."""
    assert attempts(board[0], "stops") == ["killed", "Interrupted", "ok"]


def test_what_is_done_is_not_submitted(board: tuple[Place, Outcome], engine: Engine) -> None:
    place, _ = board
    before = snapshot(place.root)
    outcome = kdbench(*engine.words_of(place, BOARD))
    assert outcome.code == 4, outcome
    assert "main 1/3" not in outcome.out
    after = snapshot(place.root)
    assert {name: after[name] for name in before} == before
    assert {name.rpartition("/")[2] for name in set(after) - set(before)} <= {"turn.lock"}


def test_cancelled_runs_have_saved_and_go_on(held: Held, undisturbed: Place) -> None:
    outcome = interrupt(held.begin())
    assert outcome.code == 75, outcome
    assert outcome.err.splitlines()[-1] == "kdbench: stopped; the same command continues where it was"
    assert not (held.folder.path / "record.json").exists()
    assert list(held.folder.checkpoints.glob("*.pt"))
    assert not held.folder.held()
    outcome = held.go_on()
    assert outcome.code == 0, outcome
    assert " main 1/3" not in outcome.out, "it began anew"
    assert attempts(held.place, ALONE) == ["Interrupted", "ok"]
    check_equal(held.place, undisturbed, ALONE)


def test_a_killed_command_loses_nothing(held: Held, undisturbed: Place, engine: Engine) -> None:
    kill(held.begin())
    if not engine.outlives:
        until(lambda: not held.folder.held(), "the end of the worker")
    outcome = held.go_on()
    assert outcome.code == 0, outcome
    if engine.outlives:
        assert attempts(held.place, ALONE) == ["ok"]
    else:
        assert " main 1/3" not in outcome.out, "it began anew"
        assert attempts(held.place, ALONE) in (["Interrupted", "ok"], ["killed", "ok"])
    check_equal(held.place, undisturbed, ALONE)
    if engine.name == "slurm":
        assert len(notes(held.place)) == 1, "it was submitted again"


def test_two_commands_at_once_do_every_run_once(held: Held, undisturbed: Place, engine: Engine) -> None:
    words = engine.words_of(held.place, ALONE)
    outcomes = [finish(process) for process in [start(*words), start(*words)]]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert attempts(held.place, ALONE) == ["ok"]
    check_equal(held.place, undisturbed, ALONE)
    if engine.name == "slurm":
        assert len(notes(held.place)) == 1, "it was submitted twice"


def test_a_run_that_is_cancelled_before_it_begins_never_begins(held: Held, engine: Engine, undisturbed: Place) -> None:
    """It may wait in the command, in the queue of a cluster, or for a node that the other run has."""
    held.acts.mkdir(exist_ok=True)
    (held.acts / "hold").touch()
    command = start("run", *held.place.cells(ALONE, 2), "--threads", 1, "--jobs", 1, "--lanes", 1, *engine.words)
    held.await_standstill(command)
    waiting = held.place.folder(ALONE, 1)
    outcome = kdbench("cancel", held.place.runs, waiting.relative_to(held.place.runs))
    assert outcome.out.startswith("asked to stop: 0 running, 1 waiting; "), outcome
    (held.acts / "hold").unlink()
    outcome = finish(command)
    assert outcome.code == 75, outcome
    assert f"cancelled: {waiting.relative_to(held.place.runs)}; " in outcome.err
    check_equal(held.place, undisturbed, ALONE)
    assert sorted(path.name for path in waiting.iterdir() if path.name != "run.lock") == ["spec.json", "stop"]
