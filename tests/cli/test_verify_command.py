"""kdbench verify: what leaderboard --records has written is well, and what was changed afterwards is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ROOT, Place, failure, kdbench, snapshot

from kdbench.seal import unsealed


@pytest.fixture
def board(finished: Place, tmp_path: Path) -> Path:
    formats = ("--format", "md,json,csv,html,latex")
    assert kdbench("leaderboard", finished.runs, "--out", "board", "--records", *formats).code == 0
    return Path("board")


def test_a_published_board_is_well_and_stays_as_it_is(board: Path) -> None:
    before = snapshot(board)
    outcome = kdbench("verify", board)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "manifest", "runs", "records", "anchors", "accuracy", "epochs", "tables",
    ]  # fmt: skip
    assert all(line.endswith(": ok") for line in lines[:-1])
    assert lines[-2].startswith(
        "tables: csv, html, json, md, latex built again from 6 runs, gains over student, vanilla_kd"
    )
    assert lines[-1] == "board: its tables are what its records say"
    assert snapshot(board) == before


def test_the_manifest_lists_every_file(board: Path) -> None:
    manifest = json.loads((board / "manifest.json").read_text(encoding="utf-8"))
    files = {path.relative_to(board).as_posix() for path in board.rglob("*") if path.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files
    assert manifest["baselines"] == ["student", "vanilla_kd"]
    before = (board / "manifest.json").read_bytes()
    assert (
        kdbench("leaderboard", board / "runs", "--out", "again", "--records", "--format", "md,json,csv,html,latex").code
        == 0
    )
    assert Path("again/manifest.json").read_bytes() == before


def test_without_records_there_is_no_manifest(finished: Place) -> None:
    assert kdbench("leaderboard", finished.runs, "--out", "board").code == 0
    assert all(path.name.startswith("leaderboard.") for path in Path("board").iterdir())
    assert failure("verify", "board").startswith("board: not a published board: it has no folder 'runs'")


def test_a_changed_board(board: Path) -> None:
    record = board / "runs/proto-v3/digits-20pc/tiny/dkd/seed1/record.json"
    tree, _ = unsealed(json.loads(record.read_text(encoding="utf-8")))
    tree["accuracy"]["last"] = 99.0
    record.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    (board / "leaderboard.csv").unlink()
    outcome = kdbench("verify", board)
    assert outcome.code == 2
    assert "manifest: 35 files, " in outcome.out
    verdicts = {line.partition(":")[0]: line.rpartition(": ")[2] for line in outcome.out.splitlines()}
    assert verdicts["manifest"] == "2 problems"
    assert verdicts["accuracy"] == "1 problem"
    assert verdicts["runs"] == verdicts["records"] == "ok"
    assert f"{board / 'leaderboard.csv'}: missing; manifest.json lists it" in outcome.problems[0]
    assert any(f"{record}: accuracy.last is 99.0, its predictions give " in text for text in outcome.problems)
    assert "its tables are what its records say" not in outcome.out


def test_a_page_and_a_latex_table_are_compared_like_the_others(board: Path) -> None:
    for name in ("leaderboard.html", "leaderboard.tex"):
        path = board / name
        path.write_text(path.read_text(encoding="utf-8").replace("student", "nobody", 1), encoding="utf-8")
    found = failure("verify", board)
    for name in ("leaderboard.html", "leaderboard.tex"):
        assert f"{board / name}: line " in found


def test_damaged_epochs_are_a_problem_and_no_crash_where_a_page_shows_them(board: Path) -> None:
    path = board / "runs/proto-v3/digits-20pc/tiny/dkd/seed1/epochs.jsonl"
    path.write_text("{\n", encoding="utf-8")
    outcome = kdbench("verify", board)
    assert outcome.code == 2
    assert any(text.startswith(f"{path}: line 1 is no report of an epoch") for text in outcome.problems)
    assert "cannot be built from the records" in outcome.out


def test_a_table_of_the_past_left_beside_new_ones(board: Path) -> None:
    """Publishing again in fewer formats leaves the old file there, which the new manifest does not know."""
    shutil.copytree(board, "other")
    assert kdbench("leaderboard", "board/runs", "--out", "other", "--records", "--format", "md").code == 0
    assert "other/leaderboard.csv: not in manifest.json" in failure("verify", "other")


def test_planned_and_unfinished_runs_are_counted(board: Path, finished: Place) -> None:
    shutil.copytree(finished.runs, "runs")
    folder = Path("runs/proto-v3/digits-20pc/tiny/dkd/seed1")
    for path in folder.iterdir():
        if path.name != "spec.json":
            path.unlink()
    assert kdbench("leaderboard", "runs", "--out", "part", "--records").code == 0
    outcome = kdbench("verify", "part")
    assert outcome.code == 0
    assert "runs: 6 runs planned, 5 with a record: ok" in outcome.out


def test_verifying_imports_no_torch_and_no_plugin() -> None:
    board = next((ROOT / "leaderboards").glob("*/leaderboard.md")).parent
    code = (
        "import sys\nfrom kdbench.cli import main\ntry:\n"
        f"    main(['verify', {str(board)!r}])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in sys.modules if name in {'torch', 'kdbench.registry'} or name.startswith('kdbench_')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines()[-1] == "[]"
