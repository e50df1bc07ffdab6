"""A finished run: what lies where, what the record says, and that nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import METHODS, Place, kdbench, snapshot
from safetensors import safe_open

FILES = ["epochs.csv", "epochs.jsonl", "predictions.npz", "record.json", "spec.json", "student.safetensors"]
SMOKE = ("--method", "student,vanilla_kd", "--pair", "tiny", "--seeds", 1, "--anchor", "fair_baseline_smoke")


@pytest.mark.parametrize("method", METHODS.split(","))
@pytest.mark.parametrize("seed", [0, 1])
def test_files_and_record_of_a_run(finished: Place, method: str, seed: int) -> None:
    folder = finished.folder(method, seed)
    assert sorted(path.name for path in folder.iterdir()) == FILES  # no checkpoint/, no lock, no leftovers
    record = finished.record(method, seed)
    assert record["run_id"] == folder.relative_to(finished.runs).as_posix()
    assert (record["status"], record["reason"], record["division"]) == ("ok", "", "closed")
    assert (record["method"], record["seed"], record["anchor"]) == (method, seed, "proto-v3")
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    assert record["options"] == spec["options"]
    assert [a["outcome"] for a in record["attempts"]] == ["ok"]
    with np.load(folder / "predictions.npz") as archive:
        correct = np.unpackbits(archive["correct"])[: int(archive["count"])]
    assert len(correct) == 599
    assert record["accuracy"]["last"] == 100 * int(correct.sum()) / 599
    epochs = [json.loads(line) for line in (folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2]
    assert epochs[-1]["test_accuracy"] == record["accuracy"]["last"]
    assert record["accuracy"]["best"] == max(epoch["test_accuracy"] for epoch in epochs)
    assert record["cost"]["student_forwards"] == 3 * 11 * 16  # epochs x full batches of the 180 images x their size
    assert record["environment"]["threads"] == 1
    with safe_open(folder / "student.safetensors", "pt") as file:
        assert (file.metadata()["backbone"], file.metadata()["method"]) == ("resnet8_w4", method)


def test_only_taught_runs_name_their_teacher(finished: Place) -> None:
    manifest = json.loads(next(finished.teachers.rglob("teacher.json")).read_text(encoding="utf-8"))
    expected = [{"name": "resnet14_w8-proto-v3-seed0", "sha256": manifest["sha256"], "accuracy": manifest["accuracy"]}]
    assert finished.record("dkd")["teachers"] == expected
    assert finished.record("student")["teachers"] == []
    assert finished.record("student")["agreement_with_teacher"] is None
    assert not list(finished.teachers.rglob("checkpoint"))
    assert not list(finished.teachers.rglob("*.lock"))


def test_seeds_differ_and_methods_of_one_seed_start_alike(finished: Place) -> None:
    weights = {
        (m, s): (finished.folder(m, s) / "student.safetensors").read_bytes() for m in METHODS.split(",") for s in (0, 1)
    }
    assert len(set(weights.values())) == 6


def test_the_same_command_again_does_nothing(finished: Place) -> None:
    before = snapshot(finished.root)
    outcome = kdbench("run", *finished.cells(METHODS, 2), "--threads", 1)  # the local engine would need workers
    assert outcome.code == 0
    assert outcome.out == f"6 ok, 0 diverged, 0 failed; kdbench leaderboard {finished.runs} --out board\n"
    assert snapshot(finished.root) == before
    again = kdbench(
        "run", *finished.cells("dkd,student", 1), "--threads", 2, "--lanes", 1, "--jobs", 2, "--retry-failed"
    )
    assert again.out.startswith("2 ok, 0 diverged, 0 failed;")
    assert snapshot(finished.root) == before


def test_processes_jobs_and_lanes_change_nothing(finished: Place, tmp_path: Path) -> None:
    inline = Place(tmp_path / "inline").with_teachers_of(finished)
    outcome = kdbench("run", *inline.cells(METHODS, 2), "--threads", 1, "--executor", "inline", "--lanes", 1)
    assert outcome.code == 0, outcome
    local = Place(tmp_path / "local").with_teachers_of(finished)
    outcome = kdbench("run", *local.cells("student,vanilla_kd", 1), "--threads", 1, "--jobs", 2, "--lanes", 1)
    assert outcome.code == 0, outcome
    for place, methods, seeds in ((inline, METHODS, (0, 1)), (local, "student,vanilla_kd", (0,))):
        for method in methods.split(","):
            for seed in seeds:
                for name in ("student.safetensors", "predictions.npz", "spec.json"):
                    mine, first = place.folder(method, seed) / name, finished.folder(method, seed) / name
                    assert mine.read_bytes() == first.read_bytes(), (place, method, seed, name)
                assert place.record(method, seed)["accuracy"] == finished.record(method, seed)["accuracy"]


def test_a_shipped_anchor_in_processes_of_its_own_equals_one_process(tmp_path: Path) -> None:
    words = ("run", *SMOKE, "--threads", 1)
    outcome = kdbench(*words)
    assert outcome.code == 0, outcome
    folder = Path("runs/fair_baseline_smoke-v1/digits/tiny")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        f"{method}/seed0/{name}" for method in ("student", "vanilla_kd") for name in FILES
    ]
    assert kdbench(*words, "--executor", "inline", "--out", "here", "--teachers", "here/teachers").code == 0
    for kind, root in (("*.safetensors", "runs"), ("weights.safetensors", "teachers")):
        for path in sorted(Path(root).rglob(kind)):
            other = Path("here", *path.parts[1:]) if root == "runs" else Path("here", *path.parts)
            assert path.read_bytes() == other.read_bytes(), path
