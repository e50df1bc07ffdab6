"""kdbench leaderboard: formats, and folders that hold nothing, too little, or something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commandline import METHODS, Place, failure, kdbench


@pytest.fixture
def runs(finished: Place, tmp_path: Path) -> Place:
    shutil.copytree(finished.runs, tmp_path / "runs")
    return Place(tmp_path)


def test_default_formats_and_what_is_printed(finished: Place) -> None:
    outcome = kdbench("leaderboard", finished.runs, "--out", "board")
    assert outcome.code == 0
    assert sorted(path.name for path in Path("board").iterdir()) == [
        "leaderboard.html",
        "leaderboard.json",
        "leaderboard.md",
    ]
    markdown = Path("board/leaderboard.md").read_text(encoding="utf-8")
    wrote = "".join(f"wrote board/leaderboard.{ending}\n" for ending in ("md", "json", "html"))
    assert outcome.out == f"{markdown}\n{wrote}"
    page = Path("board/leaderboard.html").read_text(encoding="utf-8")
    assert page.count("<svg") == page.count("<h3>") > 3
    assert "<h3>Learning curves</h3>" in page
    (table,) = json.loads(Path("board/leaderboard.json").read_text(encoding="utf-8"))["tables"]
    assert [row["method"] for row in table["rows"]] == METHODS.split(",")
    for row in table["rows"]:
        expected = [finished.record(row["method"], seed)["accuracy"]["last"] for seed in (0, 1)]
        assert [run["score"] for run in row["runs"]] == pytest.approx(expected, rel=1e-9)
        assert f"| {row['method']} " in markdown


@pytest.mark.parametrize("chosen", ["csv", "json,csv,md", "latex,html"])
def test_formats(finished: Place, chosen: str) -> None:
    assert kdbench("leaderboard", finished.runs, "--out", "board", "--format", chosen).code == 0
    endings = chosen.replace("latex", "tex").split(",")
    assert sorted(path.suffix[1:] for path in Path("board").iterdir()) == sorted(endings)


def test_the_same_records_give_the_same_bytes(finished: Place) -> None:
    for out in ("one", "two"):
        assert kdbench("leaderboard", finished.runs, "--out", out, "--format", "md,html,json,csv,latex").code == 0
    for path in sorted(Path("one").iterdir()):
        assert path.read_bytes() == Path("two", path.name).read_bytes()


def test_part_of_a_store(finished: Place) -> None:
    part = finished.runs / "proto-v3/digits-20pc/tiny/dkd"
    outcome = kdbench("leaderboard", part, "--out", "board")
    assert outcome.code == 0
    assert [line.split()[1] for line in outcome.out.splitlines() if line.startswith("| ")][1:] == ["dkd"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "runs: no runs there; make some with kdbench run --out runs"),
        (["nowhere"], "nowhere: no runs there; make some with kdbench run --out nowhere"),
        (["--format", "md,html5"], "--format: unknown format 'html5'."),
        (["--format", ""], "--format"),
    ],
)
def test_nothing_to_show(words: list[str], message: str) -> None:
    Path("runs").mkdir()
    assert message in failure("leaderboard", "--out", "board", *words)
    assert not Path("board").exists()


def test_the_same_folder_twice_is_refused(finished: Place) -> None:
    assert "seed 0 occurs 2 times" in failure("leaderboard", finished.runs, finished.runs, "--out", "board")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("record.json", None, "record.json: not JSON (half-written or foreign)"),
        ("record.json", "{}", "record.json: not a record of kdbench: kdbench_version: Field required"),
        ("record.json", "[1, 2]", "record.json: not a record of kdbench"),
        ("record.json", '{"schema_version": 2}', "record.json: record schema 2, this kdbench reads 1; upgrade kdbench"),
        ("spec.json", '{"name": "somebody else\'s"}', "spec.json: not a runspec of kdbench"),
        ("spec.json", "", "spec.json: not JSON (half-written or foreign)"),
    ],
)
def test_unreadable_files_are_named_and_kept(runs: Place, name: str, content: str | None, message: str) -> None:
    path = runs.folder("dkd", 1) / name
    data = path.read_bytes()[:300] if content is None else content.encode()
    path.write_bytes(data)
    found = failure("leaderboard", runs.runs, "--out", "board", code=73 if "schema" in message else 2)
    assert message in found
    assert str(path) in found
    assert path.read_bytes() == data
    assert not Path("board").exists()


def test_foreign_json_beside_runs_is_no_matter(runs: Place) -> None:
    expected = kdbench("leaderboard", runs.runs, "--out", "board").out
    (runs.runs / "notes.json").write_text('{"a": 1}', encoding="utf-8")
    (runs.folder("dkd") / "extra.json").write_text("nonsense", encoding="utf-8")
    assert kdbench("leaderboard", runs.runs, "--out", "board").out == expected


def test_a_planned_run_without_a_record_is_shown(runs: Place) -> None:
    (runs.folder("dkd", 1) / "record.json").unlink()
    outcome = kdbench("leaderboard", runs.runs, "--out", "board")
    assert outcome.code == 0
    (row,) = [line.split("|") for line in outcome.out.splitlines() if line.startswith("| dkd")]
    assert row[2].strip().startswith("1/2")


def test_an_unwritable_out(finished: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = failure("leaderboard", finished.runs, "--out", tmp_path / "file" / "board", code=73)
    assert "cannot be written (Not a directory); choose another folder" in message
