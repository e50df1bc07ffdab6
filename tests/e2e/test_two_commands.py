"""Two commands on one folder at once: every run is done once, and both end well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from commandline import Outcome, Place, kdbench, start

METHODS = ("student", "vanilla_kd", "dkd")
LONG_ENOUGH = 280  # seconds; nothing is measured here


def at_once(*commands: tuple[object, ...], meanwhile: Callable[[], bool] = lambda: True) -> list[Outcome]:
    """Run commands at the same time and return what each did.

    Args:
        commands: Their words.
        meanwhile: Asked again and again while one of them runs, until it says that it is done.
    """
    processes = [start(*words) for words in commands]
    while not meanwhile() and any(process.poll() is None for process in processes):
        time.sleep(0.02)
    ended = [(process, *process.communicate(timeout=LONG_ENOUGH)) for process in processes]
    return [Outcome(process.returncode, out, err) for process, out, err in ended]


def teachers_made(place: Place) -> list[int]:
    """Return when each teacher was written; whoever makes one again writes it again."""
    return [path.stat().st_mtime_ns for path in place.teachers.rglob("teacher.json")]


def trained(place: Place, method: str, seed: int) -> int:
    """Return how often a run was started: its record tells of every attempt."""
    assert place.record(method, seed)["status"] == "ok"
    return len(place.record(method, seed)["attempts"])


def test_overlapping_plans_with_a_missing_teacher(finished: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    plans = (("student,vanilla_kd", 2), ("vanilla_kd,dkd", 2))
    how = ("--threads", 1, "--lanes", 2, "--executor", "inline")
    first: list[int] = []

    def seen() -> bool:
        first[:] = teachers_made(place)
        return bool(first)

    commands = [("run", *place.cells(*plan), *how) for plan in plans]
    outcomes = at_once(*commands, meanwhile=seen)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    for outcome in outcomes:
        assert "4 ok, 0 diverged, 0 failed" in outcome.out
    both = "".join(outcome.out for outcome in outcomes)
    # A command that comes just after the other one has made it says its accuracy, too.
    assert both.count("teacher resnet14_w8") in {1, 2}
    assert len(first) == 1
    assert teachers_made(place) == first, "the teacher was trained twice"
    for seed in (0, 1):
        for method in METHODS:
            assert both.count(f"tiny/{method}/seed{seed}: ") == 1  # one of them reports its end
            assert trained(place, method, seed) == 1
            mine, other = place.folder(method, seed), finished.folder(method, seed)
            for name in ("student.safetensors", "predictions.npz"):
                assert (mine / name).read_bytes() == (other / name).read_bytes(), (method, seed, name)
    assert not list(place.root.rglob("run.lock"))
    assert not list(place.root.rglob(".tmp-*"))


def test_the_same_command_twice_after_a_crash_left_its_lock(finished: Place, tmp_path: Path) -> None:
    place = Place(tmp_path).with_teachers_of(finished)
    folder = place.folder("student")
    folder.mkdir(parents=True)
    (folder / "run.lock").touch()  # nobody holds it
    words = ("run", *place.cells("student", 1), "--threads", 1)
    outcomes = at_once(words, words)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert trained(place, "student", 0) == 1
    (table,) = json.loads(_board(place))["tables"]
    assert [row["method"] for row in table["rows"]] == ["student"]


def _board(place: Place) -> str:
    out = place.root / "board"
    assert kdbench("leaderboard", place.runs, "--out", out, "--format", "json").code == 0
    return (out / "leaderboard.json").read_text(encoding="utf-8")
