"""Pairs whose teachers know different classes: trained, distilled, published, from pair file to board."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import PROTO, failure, installed, kdbench, write_plugin

from kdbench.artefacts import TeacherStore

CLASSES, PER_CLASS, TESTED = 8, 12, 5
TEACHER = "resnet8_w4-proto-v3-seed0"
# random.Random(42).shuffle of 0..7 is 3 4 6 7 2 5 0 1: 50 % are the first four, then two each.
PARTS = ((2, 3, 4, 5, 6, 7), (0, 1, 3, 4, 6, 7))
PLUGIN = """
from pathlib import Path
from kdbench import hookimpl

@hookimpl
def kdbench_pairs():
    return sorted(Path(__file__).parent.glob("*.yaml"))
"""
PAIRS = {"half": "overlap_pct: 50\noverlap_seed: 42\n", "whole": "overlap_pct: 100\n", "common": ""}


@pytest.fixture
def data() -> str:
    """Images whose brightness tells their class."""
    draws = np.random.Generator(np.random.PCG64(0))
    parts: dict[str, Any] = {}
    for part, count in (("train", PER_CLASS), ("test", TESTED)):
        labels = np.arange(CLASSES * count) % CLASSES
        noise = draws.integers(0, 20, (len(labels), 8, 8, 1))
        parts |= {f"{part}_labels": labels, f"{part}_images": (30 * labels[:, None, None, None] + noise).astype("u1")}
    Path("private").mkdir()
    np.savez("private/x.npz", **parts)
    return "npz:private/x.npz"


@pytest.fixture
def _pairs(tmp_path: Path, data: str) -> Iterator[None]:
    site = write_plugin(tmp_path / "site", "overlapping_pairs", PLUGIN)
    for name, keys in PAIRS.items():
        text = f"name: {name}\nstudent: resnet8_w4\nteachers: [resnet8_w4, resnet8_w4]\ndataset: {data}\n{keys}"
        (site / f"{name}.yaml").write_text(text, encoding="utf-8")
    with installed(site):
        yield


def run(pair: str, *more: object) -> Any:
    where = ("--anchor", PROTO, "--seeds", 1, "--threads", 1, "--executor", "inline")
    outcome = kdbench("run", "--method", "student,vanilla_kd", "--pair", pair, *where, *more)
    assert outcome.code == 0, outcome
    (path,) = Path("runs").glob(f"*/*/{pair}/vanilla_kd/seed0/record.json")
    return json.loads(path.read_text(encoding="utf-8")), json.loads(path.with_name("spec.json").read_text())


@pytest.mark.usefixtures("_pairs")
def test_teachers_of_a_pair_are_trained_on_their_parts(data: str) -> None:
    record, spec = run("half")
    manifests = {m.dataset.name: m for m in TeacherStore(Path("teachers")).all()}
    names = [f"overlap:50,42,{part}:{data}" for part in (1, 2)]
    assert sorted(manifests) == names
    assert [d["name"] for d in spec["teacher_datasets"]] == names
    assert (record["status"], record["dataset_ref"]["name"], record["classes"]) == ("ok", data, CLASSES)
    assert [t["sha256"] for t in record["teachers"]] == [manifests[name].sha256 for name in names]
    assert record["agreement_with_teacher"] is None
    for name, part in zip(names, PARTS, strict=True):
        assert manifests[name].classes == tuple(map(str, range(CLASSES)))
        assert manifests[name].test_images == TESTED * len(part)
    assert run("half")[0] == record, "a finished run is not made again"
    verified = kdbench("teacher", "verify", TEACHER).out
    assert all(manifest.dataset.label in verified for manifest in manifests.values())
    shown = kdbench("show", "half").out
    assert f"overlap of the teachers' classes: 50 %, seed 42; teachers trained on {' and '.join(names)}" in shown
    assert kdbench("leaderboard", "runs", "--out", "board", "--records").code == 0
    (published,) = Path("board").rglob("half/vanilla_kd/seed0/spec.json")
    assert [d["name"] for d in json.loads(published.read_text())["teacher_datasets"]] == [
        "overlap:50,42,1:npz:x.npz",
        "overlap:50,42,2:npz:x.npz",
    ]
    assert all("private" not in path.read_text() for path in Path("board").rglob("*.json"))


@pytest.mark.usefixtures("_pairs")
def test_with_all_classes_in_common_teachers_are_shared_with_other_pairs(data: str) -> None:
    record, spec = run("whole")
    assert spec["teacher_datasets"] == []
    (manifest,) = TeacherStore(Path("teachers")).all()
    assert manifest.dataset.name == data
    assert record["agreement_with_teacher"] is not None
    other, _ = run("common", "--no-train-teachers")
    assert other["teachers"] == record["teachers"]


@pytest.mark.usefixtures("_pairs")
def test_a_named_teacher_must_be_one_of_the_part() -> None:
    run("whole")
    where = ("--pair", "half", "--anchor", PROTO, "--seeds", 1, "--teacher", f"{TEACHER},{TEACHER}")
    said = failure("run", "--method", "vanilla_kd", *where)
    assert said.count(f"teacher '{TEACHER}' for dataset 'npz-x-") == 2
    assert "overlap50-s42-1" in said
    assert "overlap50-s42-2" in said
