"""The teacher cache on the command line: what plan says of it, filling it, and runs that then ask no teacher."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, failure, kdbench

PAIR = ("--pair", "tiny", "--per-class", 20)
TEACHER = "resnet14_w8-crd_smoke-v1-seed0"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return a place with the teacher of crd_smoke, which mixes no images, and the records of runs without a cache."""
    place = Place(tmp_path_factory.mktemp("taught"))
    outcome = kdbench(*run(place, "--teacher-cache", "off"))
    assert outcome.code == 0, outcome
    assert not (place.root / "cache").exists()
    return place


def run(place: Place, *more: object, methods: str = "vanilla_kd,sskd", anchor: str = "crd_smoke") -> list[object]:
    """Return the words of a run."""
    return [
        "run", "--method", methods, *PAIR, "--anchor", anchor, "--seeds", 2, "--threads", 1, "--out", place.runs,
        "--teachers", place.teachers, "--executor", "inline", *more,
    ]  # fmt: skip


def plan(methods: str, anchor: str, *more: object) -> list[str]:
    """Return what a plan says of the cache."""
    outcome = kdbench("plan", "--method", methods, *PAIR, "--anchor", anchor, "--device", "cpu", "--no-measure", *more)
    assert outcome.code == 0, outcome
    return [line for line in outcome.out.splitlines() if line.startswith("teacher cache")]


def test_plan_says_for_each_method_whether_the_cache_applies_and_if_not_why() -> None:
    # 200 images in 9 crops: 10 logits or 32 numbers of an embedding in 4 bytes, 4 bytes of checksum, 4 KiB of header.
    assert plan("student,vanilla_kd,dkd,crd,fitnet,sskd", "crd_smoke") == [
        "teacher cache on tiny: student: live, the shared teachers are not asked",
        "teacher cache on tiny: vanilla_kd, dkd: kept, at most 0.1 MiB on disk",
        "teacher cache on tiny: crd: kept, at most 0.3 MiB on disk",
        "teacher cache on tiny: fitnet: live, it needs feature maps of resnet14_w8",
        "teacher cache on tiny: sskd: kept, at most 0.3 MiB on disk; their views run live",
    ]


def test_plan_says_what_stands_against_it() -> None:
    assert plan("dkd", "fair_baseline_smoke") == [
        "teacher cache on tiny: dkd: live, the anchor mixes images, so no input comes twice"
    ]
    assert plan("dkd", "crd_smoke", "--cache-size", 0.00005) == [
        "teacher cache on tiny: dkd: live, the outputs take 0.1 MiB, more than --cache-size 0.1 MiB"
    ]
    assert plan("dkd", "crd_smoke", "--teacher-cache", "off") == ["teacher cache: off"]


def test_a_half_anchor_takes_half_the_room(tmp_path: Path) -> None:
    (tmp_path / "halved.yaml").write_text(
        "extends: crd_smoke\nname: halved\nversion: 1\nstep: {teacher_cache: half, precision: bf16}\n", encoding="utf-8"
    )
    (line,) = plan("dkd", "halved.yaml")
    assert line == "teacher cache on tiny: dkd: kept, at most 0.0 MiB on disk"


def costs(place: Place, method: str, seed: int) -> tuple[int, int]:
    cost = record(place, method, seed)["cost"]
    return cost["teacher_forwards"], cost.get("teacher_cached", 0)


def record(place: Place, method: str, seed: int) -> Any:
    import json

    path = place.runs / "crd_smoke-v1" / "digits-20pc" / "tiny" / method / f"seed{seed}" / "record.json"
    return json.loads(path.read_text(encoding="utf-8"))


def weights(place: Place) -> dict[str, bytes]:
    return {str(path.relative_to(place.runs)): path.read_bytes() for path in place.runs.rglob("student.safetensors")}


def test_runs_after_filling_ask_no_teacher_and_are_the_same(taught: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(taught.teachers, place.teachers)
    words = [
        "teacher", "cache", TEACHER, "--dataset", "digits", "--per-class", 20, "--anchor", "crd_smoke", "--embedding",
        "--teachers", place.teachers, "--threads", 1,
    ]  # fmt: skip
    outcome = kdbench(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{TEACHER}: 1,800 crops, 0 of them kept before, 0.3 MiB in {tmp_path / 'cache'}\n"
    assert ": 1,800 crops, 1,800 of them kept before" in kdbench(*words).out
    assert kdbench(*run(place)).code == 0
    assert weights(place) == weights(taught)
    for seed in range(2):
        live, cached = costs(place, "vanilla_kd", seed)
        assert live == 0
        assert cached > 0
        # Of the other one the three views of every image remain; without the cache they came on top of it.
        assert costs(place, "sskd", seed)[0] < costs(taught, "sskd", seed)[0]
        assert costs(taught, "vanilla_kd", seed) == (cached, 0)


def test_workers_keep_what_they_are_told_to(taught: Place, tmp_path: Path) -> None:
    place = Place(tmp_path).with_teachers_of(taught)
    elsewhere = ("--cache", tmp_path / "kept", "--cache-size", 0.5)
    outcome = kdbench(*run(place, *elsewhere, "--executor", "local", methods="vanilla_kd"))
    assert outcome.code == 0, outcome
    assert len(list((tmp_path / "kept").rglob("*.entries"))) == 1
    assert not (tmp_path / "cache").exists()


def test_filling_what_no_run_reads_is_refused(taught: Place) -> None:
    words = ("teacher", "cache", TEACHER, "--dataset", "digits", "--per-class", 20, "--teachers", taught.teachers)
    assert failure(*words, "--anchor", "fair_baseline_smoke") == (
        "anchor fair_baseline_smoke: runs of it use no teacher cache here: the anchor mixes images, so no input comes "
        "twice"
    )
    assert "teacher 'nobody' for dataset 'digits-20pc': not in" in failure(
        "teacher", "cache", "nobody", *words[3:], "--anchor", "crd_smoke"
    )
