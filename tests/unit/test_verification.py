"""A published board that was tampered with: each change is found by what it contradicts, and named with a remedy.

The shipped board is changed without its manifest, whose hashes would tell on everything; it has tests of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench import registry
from kdbench.config.loading import load_anchor
from kdbench.errors import ConfigError, StoreError
from kdbench.leaderboard import to_json, to_markdown, write_manifest
from kdbench.leaderboard.answers import Answers
from kdbench.leaderboard.build import build
from kdbench.leaderboard.model import Cell
from kdbench.registry import Registry
from kdbench.store import RunStore
from kdbench.verification import Check, tables, verify
from kdbench.verification.bundle import open_bundle, read_runs
from kdbench.verification.identity import shipped_anchors
from kdbench.verification.predictions import read_answers
from kdbench.verification.tables import Board, baselines_of

SHIPPED = Path(__file__).resolve().parents[2] / "leaderboards" / "cifar100-subset-res20_res8"
ROWS = Path("runs/fair_baseline_short-v1/npz-cifar100-eaabb3ac/res20_res8")
BASELINES = ("student", "vanilla_kd")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """Return a copy of the shipped board as an older kdbench would have written it: without a manifest."""
    shutil.copytree(SHIPPED, tmp_path / "board")
    (tmp_path / "board" / "manifest.json").unlink()
    return tmp_path / "board"


def run_of(board: Path, method: str = "dkd", seed: int = 0) -> Path:
    return board / ROWS / method / f"seed{seed}"


def change(path: Path, alter: Callable[[Any], None]) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    alter(tree)
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def as_they_are(cell: Cell) -> Answers:
    with np.load(Path(cell.path) / "predictions.npz") as archive:
        return Answers(archive["correct"], int(archive["count"]))


def rebuild(board: Path) -> None:
    """Write the tables again, as somebody would who forges records and publishes what follows from them."""
    cells = [Cell(spec, run.peek(), str(run.path)) for run, spec in RunStore(board / "runs").runs()]
    made = build(cells, BASELINES, answers=as_they_are)
    (board / "leaderboard.md").write_text(to_markdown(made), encoding="utf-8")
    (board / "leaderboard.json").write_text(to_json(made), encoding="utf-8")


def rewrite_predictions(run: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    with np.load(run / "predictions.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["correct"] = np.unpackbits(arrays["correct"], count=int(arrays["count"]))
    alter(arrays)
    arrays["correct"] = np.packbits(arrays["correct"])
    np.savez_compressed(run / "predictions.npz", **arrays)


def problems(board: Path) -> dict[str, list[str]]:
    """Return the problems of each check that has some."""
    return {check.name: check.problems for check in verify(board) if check.problems}


def test_the_shipped_board_and_an_older_one_are_well(board: Path) -> None:
    said = {check.name: check.line for check in verify(SHIPPED)}
    assert [*said] == ["manifest", "runs", "records", "anchors", "accuracy", "epochs", "tables"]
    assert said["manifest"].startswith("manifest: 50 files, written by kdbench ")
    assert said["runs"] == "runs: 12 runs planned, 12 with a record: ok"
    assert said["epochs"] == "epochs: 180 reports of 12 runs: ok"
    assert said["tables"] == "tables: json, md built again from 12 runs, gains over student, vanilla_kd: ok"
    assert problems(SHIPPED) == {}
    assert problems(board) == {}
    assert verify(board)[0].line == "manifest: none, as in boards of older versions; hashes not compared: ok"


def test_no_plugin_is_asked_and_nothing_is_written(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("verification loads plugins")

    monkeypatch.setattr(registry, "load", fail)
    before = {path: path.stat().st_mtime_ns for path in board.rglob("*")}
    assert problems(board) == {}  # one of its methods is that of a third party
    assert {path: path.stat().st_mtime_ns for path in board.rglob("*")} == before


def test_a_changed_accuracy(board: Path) -> None:
    path = run_of(board) / "record.json"
    change(path, lambda tree: tree["accuracy"].update(last=40.0, best=40.0))
    found = problems(board)
    assert set(found) == {"accuracy", "epochs", "tables"}
    assert found["accuracy"][0].startswith(
        f"{path}: accuracy.last is 40.0, its predictions give 30.18 (3018 of 10000); "
    )
    assert "the last epoch in epochs.jsonl has 30.18" in found["epochs"][0]
    rebuild(board)  # the tables then follow the forged record, but its own files do not
    assert set(problems(board)) == {"accuracy", "epochs"}


@pytest.mark.parametrize("key", ["best", "last5_mean"])
def test_an_accuracy_that_the_epochs_do_not_give(board: Path, key: str) -> None:
    path = run_of(board) / "record.json"
    change(path, lambda tree: tree["accuracy"].update({key: 50.0}))
    assert [text.startswith(f"{path}: accuracy.{key} is 50.0, ") for text in problems(board)["epochs"]] == [True]


def test_predictions_made_to_fit_contradict_the_other_runs(board: Path) -> None:
    """Accuracy, epochs and tables follow the forged predictions; what the other runs were right with does not."""
    run = run_of(board)

    def claim(arrays: dict[str, Any]) -> None:
        wrong = np.flatnonzero(arrays["correct"] == 0)[:500]
        arrays["correct"][wrong] = 1

    rewrite_predictions(run, claim)
    right = int(read_answers(run / "predictions.npz", 100).correct.sum())
    change(run / "record.json", lambda tree: tree["accuracy"].update(last=right / 100, best=right / 100))
    lines = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    lines[-1]["test_accuracy"] = right / 100
    tail = sum(line["test_accuracy"] for line in lines[-5:]) / 5
    change(run / "record.json", lambda tree: tree["accuracy"].update(last5_mean=tail))
    (run / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rebuild(board)
    (text,) = problems(board)["accuracy"]
    assert set(problems(board)) == {"accuracy"}
    assert text.startswith(f"{run / 'predictions.npz'}: contradicts 11 other runs, most of all that in ")


def test_predictions_edited_alone(board: Path) -> None:
    run = run_of(board, "student", 2)
    rewrite_predictions(run, lambda arrays: arrays["correct"].__setitem__(np.flatnonzero(arrays["correct"])[0], 0))
    recounted, contradicting = problems(board)["accuracy"]
    assert f"{run / 'record.json'}: accuracy.last is " in recounted
    assert contradicting.startswith(f"{run / 'predictions.npz'}: contradicts ")
    assert " on 1 test image: it counts class " in contradicting
    assert " as wrong for image " in contradicting


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "not predictions of kdbench"),
        (lambda path: path.write_bytes(b""), "not predictions of kdbench"),
        (lambda path: path.unlink(), "missing; a run with an accuracy has its predictions"),
        (lambda path: np.savez(path, correct=1, predicted=2), "count"),
        (lambda path: np.savez(path, correct=1, predicted=2, count=0), "its count is no positive integer"),
        (
            lambda path: np.savez(path, correct=np.zeros(1, np.uint8), predicted=np.zeros(9, int), count=9),
            "its correct is uint8 (1,), expected are uint8s (2,)",
        ),
        (
            lambda path: np.savez(path, correct=np.zeros(1, np.uint8), predicted=np.full(8, 100), count=8),
            "it names class 100 of 100",
        ),
    ],
)
def test_unreadable_predictions(board: Path, damage: Callable[[Path], None], message: str) -> None:
    path = run_of(board) / "predictions.npz"
    damage(path)
    (text,) = problems(board)["accuracy"]
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "bring back the published file" in text


def test_an_archive_that_unpacks_without_end_is_not_read(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.verification.predictions.LARGEST", 10_000)
    assert all("bytes; allowed is 10000" in text for text in problems(board)["accuracy"])


def test_a_removed_run(board: Path) -> None:
    shutil.rmtree(run_of(board, "dist", 1))
    found = problems(board)
    assert set(found) == {"tables"}
    assert found["tables"][0].startswith(f"{board / 'leaderboard.json'}: shows run fair_baseline_short-v1/")
    assert "/dist/seed1, which is not in " in found["tables"][0]
    assert [text.partition(": ")[0] for text in found["tables"][1:]] == [
        str(board / "leaderboard.json"),
        str(board / "leaderboard.md"),
    ]


def test_an_added_run_is_named(board: Path) -> None:
    target = run_of(board, "dkd", 3)
    shutil.copytree(run_of(board, "dkd", 2), target)
    change(target / "spec.json", lambda tree: tree.update(seed=3))
    (target / "record.json").unlink()
    (target / "predictions.npz").unlink()
    (target / "epochs.jsonl").unlink()
    assert (
        f"{target}: is not in {board / 'leaderboard.json'}, which should have every run" in problems(board)["tables"][0]
    )


def test_a_seed_twice(board: Path) -> None:
    copy = run_of(board, "dkd", 7)
    shutil.copytree(run_of(board, "dkd", 0), copy)
    found = problems(board)
    assert found["runs"][0].startswith(f"{copy / 'spec.json'}: is the spec of run fair_baseline_short-v1/")
    assert "seed 0 occurs 2 times" in found["tables"][-1]


def test_an_edited_spec(board: Path) -> None:
    path = run_of(board) / "spec.json"
    change(path, lambda tree: tree["options"].update(beta=9.0))
    (text,) = problems(board)["records"]
    assert text.startswith(f"{path.parent}: options is ")
    assert "bring back" in text or "restore" in text


def test_an_edited_anchor_in_spec_and_record_alike(board: Path) -> None:
    """A protocol that was changed everywhere fits itself, but not the one that is shipped under its name."""
    for run, spec in RunStore(board / "runs").runs():
        change(run.path / "spec.json", lambda tree: tree["anchor"]["optimizer"].update(lr=0.5))
        changed = run.spec()
        assert changed.config_sha256 != spec.config_sha256
        hashes = {"config_sha256": changed.config_sha256, "anchor_sha256": changed.anchor.sha256}
        change(run.path / "record.json", lambda tree, hashes=hashes: tree.update(hashes))
    rebuild(board)
    found = problems(board)
    assert set(found) == {"anchors"}
    assert len(found["anchors"]) == 12
    assert "a changed protocol needs a name of its own" in found["anchors"][0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("student", "resnet20"), ("division", "open"), ("dataset", "other"), ("anchor", "other-v1"), ("classes", 10)],
)
def test_a_record_that_says_something_else(board: Path, key: str, value: object) -> None:
    path = run_of(board) / "record.json"
    change(path, lambda tree: tree.update({key: value}))
    found = [text for texts in problems(board).values() for text in texts]
    assert found
    assert all(str(path.parent) in text for text in found)


@pytest.mark.parametrize("name", ["leaderboard.md", "leaderboard.json"])
def test_an_edited_table(board: Path, name: str) -> None:
    path = board / name
    text = path.read_text(encoding="utf-8")
    edited = text.replace("29.85 ± 0.30", "39.85 ± 0.30") if name.endswith("md") else text.replace("29.8", "39.8", 1)
    assert edited != text
    path.write_text(edited, encoding="utf-8")
    (said,) = problems(board)["tables"]
    assert said.startswith(f"{path}: line ")
    assert ", the records give '" in said
    assert "39.8" in said
    assert "29.8" in said


@pytest.mark.parametrize(("units", "fits"), [(1, True), (100, False)])
def test_other_releases_of_libraries_may_round_the_tenth_digit_otherwise(board: Path, units: int, fits: bool) -> None:
    path = board / "leaderboard.json"
    text = path.read_text(encoding="utf-8")
    long = next(found[0] for found in re.finditer(r"[1-9]\.[0-9]{9}", text))
    other = f"{float(long) + units * 1e-9:.9f}"
    path.write_text(text.replace(long, other), encoding="utf-8")
    assert ("tables" not in problems(board)) == fits


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ('"torch 2.10.0"', '"torch 2.1.0"'),
        ("[93.5, 1]", "[193.5, 1]"),
        ("[#, 93.5]", "[93.5, #]"),
        ("[1, 93.5]", "[93.5, 1]"),
        ('{"a": 0.25}', '{"b": 0.25}'),
        ('{"a": 0.25}', '{"a": 0.2500001}'),
        ('{"a": 0.25}', '{"a": -0.25}'),
    ],
)
def test_other_differences_are_differences(line: str, other: str) -> None:
    assert not tables._same_numbers(line.encode(), other.encode())
    assert tables._same_numbers(line.encode(), line.encode())


def test_a_table_cut_short_and_one_that_nobody_can_make(board: Path) -> None:
    path = board / "leaderboard.md"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    (board / "leaderboard.pdf").write_text("x")
    cut, foreign = problems(board)["tables"]
    assert cut.startswith(f"{path}: has ")
    assert foreign.startswith(f"{board / 'leaderboard.pdf'}: this kdbench writes ")


def test_no_table_at_all(board: Path) -> None:
    for path in board.glob("leaderboard.*"):
        path.unlink()
    assert "publish the board again" in problems(board)["tables"][0]


@pytest.mark.parametrize("name", ["spec.json", "record.json"])
def test_truncated_json_of_a_run(board: Path, name: str) -> None:
    path = run_of(board) / name
    path.write_bytes(path.read_bytes()[:300])
    found = problems(board)
    assert found["runs"][0].startswith(f"{path}: not JSON (half-written or foreign)")
    assert "tables" not in found
    assert "not compared" in verify(board)[-1].line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "leaderboard.json: not JSON"),
        ("[]", "leaderboard.json: not a board of kdbench"),
        ('{"tables": [{"baselines": 1}]}', "leaderboard.json: not a board of kdbench"),
    ],
)
def test_a_json_board_that_is_none(board: Path, text: str, message: str) -> None:
    (board / "leaderboard.json").write_text(text)
    assert message in problems(board)["tables"][0]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda lines: lines[:-1], "ends with epoch 14 of the student, the anchor has 15"),
        (lambda lines: [*lines, "{"], "line 16 is no report of an epoch"),
        (lambda lines: [*lines, "{}"], "line 16 is no report of an epoch (run_id: Field required)"),
        (lambda lines: [line.replace("seed0", "seed1") for line in lines], "has epochs of run "),
        (lambda _: [], "ends with epoch 0 of the student"),
    ],
)
def test_epochs_that_do_not_fit(board: Path, alter: Callable[[list[str]], list[str]], message: str) -> None:
    path = run_of(board) / "epochs.jsonl"
    path.write_text("".join(f"{line}\n" for line in alter(path.read_text().splitlines())))
    assert any(message in text and str(path) in text for text in problems(board)["epochs"])


def test_epochs_that_are_missing_or_have_another_table(board: Path) -> None:
    (run_of(board) / "epochs.jsonl").unlink()
    table = run_of(board, "dist") / "epochs.csv"
    table.write_text("run_id,phase,epoch,name,value\n")
    missing, other = sorted(problems(board)["epochs"], key=len, reverse=True)
    texts = {missing, other}
    assert any("missing; a run with an accuracy has its epochs" in text for text in texts)
    assert any(text.startswith(f"{table}: is not the table of the reports") for text in texts)


def test_links_are_named_and_not_followed(board: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(run_of(board), outside)
    (outside / "secret").write_text("secret")
    record = run_of(board, "dist") / "record.json"
    record.rename(tmp_path / "record.json")
    record.symlink_to(tmp_path / "record.json")
    shutil.rmtree(run_of(board))
    run_of(board).symlink_to(outside)
    found = problems(board)["runs"]
    assert f"{run_of(board)}: a link to {outside}; a board consists of plain files: put the file itself there" in found
    assert any(text.startswith(f"{record}: a link to ") for text in found)
    assert not any("secret" in text for text in found)


def test_what_belongs_to_no_run(board: Path) -> None:
    os.mkfifo(run_of(board) / "pipe")
    (run_of(board) / "student.safetensors").touch()
    (run_of(board, "dist") / "spec.json").unlink()
    (board / "LICENSE").write_text("whatever lies beside the runs is nobody's business")
    found = problems(board)["runs"]
    assert any(text.startswith(f"{run_of(board) / 'pipe'}: no plain file") for text in found)
    assert any(text.startswith(f"{run_of(board) / 'student.safetensors'}: belongs to no run") for text in found)
    assert any(text.startswith(f"{run_of(board, 'dist') / 'record.json'}: belongs to no run") for text in found)
    assert not any("LICENSE" in text for text in found)


def test_the_manifest_tells_on_every_change(board: Path) -> None:
    files = [path for path in board.rglob("*") if path.is_file()]
    write_manifest(board, files, BASELINES)
    assert problems(board) == {}
    path = run_of(board) / "record.json"
    change(path, lambda tree: tree["environment"].update(machine="a faster one"))
    (run_of(board, "dist") / "epochs.jsonl").unlink()
    (board / "leaderboard.csv").touch()
    found = problems(board)["manifest"]
    assert [text.partition(": ")[0] for text in found] == [
        str(run_of(board, "dist") / "epochs.jsonl"),
        str(path),
        str(board / "leaderboard.csv"),
    ]
    assert ": missing; manifest.json lists it" in found[0]
    assert ": sha256 is " in found[1]
    assert ": not in manifest.json" in found[2]


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 2}'])
def test_a_manifest_that_is_none(board: Path, text: str) -> None:
    (board / "manifest.json").write_text(text)
    (said,) = problems(board)["manifest"]
    assert said.startswith(f"{board / 'manifest.json'}: ")


def test_a_manifest_of_another_version_says_with_which_to_verify(board: Path) -> None:
    write_manifest(board, [path for path in board.rglob("*") if path.is_file()], BASELINES)
    change(board / "manifest.json", lambda tree: tree.update(kdbench_version="9.9"))
    (board / "leaderboard.md").write_text("# Another layout\n", encoding="utf-8")
    assert "it was written by kdbench 9.9, this is " in problems(board)["tables"][0]


def test_gains_are_those_of_the_published_board(board: Path) -> None:
    bundle = open_bundle(board)
    tables = [
        {"baselines": ["b"], "absent_baselines": ["a", "c"], "rows": []},
        {"baselines": ["a", "b", "c"], "absent_baselines": [], "rows": []},
    ]
    assert baselines_of(bundle, Board.model_validate({"tables": tables})) == ("a", "b", "c")
    contrary = [{**tables[1]}, {**tables[1], "baselines": ["b", "a"]}]
    assert baselines_of(bundle, Board.model_validate({"tables": contrary})) == BASELINES
    assert baselines_of(bundle, None) == BASELINES
    write_manifest(board, [board / "leaderboard.md"], ["plain"])
    assert baselines_of(open_bundle(board), None) == ("plain",)


def test_what_is_no_board(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="not a published board: it has no folder 'runs'"):
            verify(folder)
    (tmp_path / "runs").mkdir()
    assert read_runs(open_bundle(tmp_path))[1].problems[0].startswith(f"{tmp_path / 'runs'}: no runs there")


def test_a_file_that_cannot_be_read_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("kdbench.verification.hashes.digest", fail)
    with pytest.raises(StoreError, match=r"leaderboard.json: cannot be read \(Permission denied\); verify again when"):
        verify(SHIPPED)


@pytest.mark.parametrize("name", ["fair_baseline_short", "asib_ladder_smoke", "ab_A"])
def test_shipped_protocols_are_known_wherever_they_lie(name: str, registry: Registry) -> None:
    anchor = load_anchor(name, registry.anchors.as_mapping())
    assert shipped_anchors([name, "nobody's"]) == {anchor.label: anchor.sha256}


def test_a_preset_that_names_a_protocol_is_none_itself(registry: Registry) -> None:
    naming = [preset.name for preset in registry.presets.values() if isinstance(preset.anchor, str)]
    assert naming
    assert shipped_anchors(naming) == {}


def test_how_checks_are_shown() -> None:
    assert Check("runs", "1 run").line == "runs: 1 run: ok"
    assert Check("runs", "1 run", ["x"]).line == "runs: 1 run: 1 problem"
    assert Check("runs", "1 run", ["x", "y"]).line == "runs: 1 run: 2 problems"
