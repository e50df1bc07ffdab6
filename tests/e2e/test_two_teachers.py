"""Runs with two teachers from the command to the board, both teachers trained on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commandline import Place, failure, kdbench

METHODS = ("vanilla_kd", "dkd", "fitnet")
ANCHOR = "extends: {extends}\nname: {name}\nversion: 1\nloss: {{kd_target: avg, teacher_weights: {weights}}}\n"


def words(place: Place, anchor: Path | str, methods: str = ",".join(METHODS)) -> list[object]:
    return [
        "--method", methods, "--pair", "tiny_two", "--seeds", 1, "--anchor", anchor, "--per-class", 20,
        "--out", place.runs, "--teachers", place.teachers, "--threads", 1, "--executor", "inline",
        "--teacher-cache", "off",
    ]  # fmt: skip


def anchor(folder: Path, name: str, weights: str, extends: str = "crd_smoke") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(ANCHOR.format(extends=extends, name=name, weights=weights), encoding="utf-8")
    return path


def run_folder(place: Place, label: str, method: str) -> Path:
    return place.runs / label / "digits-20pc" / "tiny_two" / method / "seed0"


def weights_of(place: Place, label: str, method: str) -> bytes:
    return (run_folder(place, label, method) / "student.safetensors").read_bytes()


@pytest.mark.parametrize("protocol", ["crd_smoke", "fair_baseline_smoke"])
def test_two_teachers_from_the_command_to_the_board(tmp_path: Path, protocol: str) -> None:
    place, label = Place(tmp_path), f"{protocol}-v1"
    outcome = kdbench("run", *words(place, protocol))
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines()[-1].startswith("3 ok, 0 diverged, 0 failed;")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in place.teachers.rglob("teacher.json")]
    manifests: dict[str, Any] = {manifest["backbone"]: manifest for manifest in found}
    assert set(manifests) == {"resnet14_w8", "resnet8_w4"}
    for method in METHODS:
        record = json.loads((run_folder(place, label, method) / "record.json").read_text(encoding="utf-8"))
        assert (record["status"], record["reason"]) == ("ok", ""), method
        assert record["teachers"] == [
            {key: manifests[backbone][key] for key in ("name", "sha256", "accuracy")}
            for backbone in ("resnet14_w8", "resnet8_w4")
        ]
        # Each image passes both teachers, once for the three methods that were trained together.
        cost = record["cost"]
        assert cost["teacher_forwards"] == round(2 * cost["student_forwards"] / len(METHODS))
        assert 0 <= record["agreement_with_teacher"] <= 100
    board = kdbench("leaderboard", place.runs, "--out", tmp_path / "board")
    assert board.code == 0, board
    text = "\n".join(path.read_text(encoding="utf-8") for path in (tmp_path / "board").rglob("*.md"))
    assert all(method in text for method in METHODS)
    assert all(manifest["name"] in text for manifest in manifests.values())


def test_weights_by_name_and_in_order_train_the_same_student(tmp_path: Path) -> None:
    place = Place(tmp_path)
    named = anchor(tmp_path, "named", "{resnet8_w4: 3, resnet14_w8: 1}")
    assert kdbench("run", *words(place, named, "vanilla_kd")).code == 0
    first, second = sorted(
        (json.loads(path.read_text(encoding="utf-8")) for path in place.teachers.rglob("teacher.json")),
        key=lambda manifest: manifest["backbone"],
    )
    assert (first["backbone"], second["backbone"]) == ("resnet14_w8", "resnet8_w4")
    teachers = ("--teacher", f"{first['name']},{second['name']}")
    for name, weights in {"listed": "[1, 3]", "turned": "[3, 1]"}.items():
        outcome = kdbench("run", *words(place, anchor(tmp_path, name, weights), "vanilla_kd"), *teachers)
        assert outcome.code == 0, outcome
    students = {name: tensors(weights_of(place, f"{name}-v1", "vanilla_kd")) for name in ("named", "listed", "turned")}
    assert students["named"] == students["listed"] != students["turned"]


def tensors(file: bytes) -> bytes:
    """Return what a safetensors file holds behind its header, which names the run."""
    return file[8 + int.from_bytes(file[:8], "little") :]


def test_names_a_pair_does_not_have_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    place = Place(tmp_path)
    wrong = anchor(tmp_path, "wrong", "{resnet14_w8: 1, resnet20: 3}")
    said = failure("run", *words(place, wrong))
    assert said == (
        "anchor wrong: loss.teacher_weights names resnet14_w8, resnet20, but pair 'tiny_two' has resnet14_w8, "
        "resnet8_w4; name exactly its teachers"
    )
    assert not place.teachers.exists()
