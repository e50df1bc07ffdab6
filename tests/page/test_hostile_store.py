"""From a stranger's store to files and terminal, through the command: whatever its free text says, it stays text."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import madeup
import pytest
from click.testing import CliRunner
from madeup import record_of, spec_of
from test_page import Page

from kdbench.cli.main import cli
from kdbench.records import Environment, TeacherUsed
from kdbench.seal import sealed
from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef
from kdbench.store import RECORD, SPEC, RunFolder

EVIL = '=HYPERLINK("http://x")</script><img src=x onerror=alert(1)>\x1b[2J|\\input{/etc/passwd}$x_1&%\u202e`![a](b)'
FREE: dict[str, Any] = {  # every text of a spec that is no name
    "plugin": PluginRef(distribution=EVIL, version=EVIL),
    "student": EVIL,
    "dataset": DatasetRef(name=EVIL, slug="toy", fingerprint=EVIL),
    "options": {"note": EVIL},
}
DEVIATION = (DeclaredDeviation(key=EVIL, value=EVIL, reason=EVIL),)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a board made from such a store, and what the terminal got to see."""
    root = tmp_path_factory.mktemp("hostile")
    around = Environment(**madeup.ENVIRONMENT.model_dump() | {"machine": EVIL, "device": EVIL, "commit": EVIL})
    teacher = TeacherUsed(name=EVIL, sha256=EVIL, accuracy=79.5)
    for method, scores in {"student": (70.0, 71.0), "fancy": (72.0, 73.5), "bent": (72.0, None)}.items():
        for seed, score in enumerate(scores):
            taught = {"teachers": () if method == "student" else (EVIL,)}
            spec = spec_of(method, seed, **FREE, **taught, deviations=DEVIATION if method == "bent" else ())
            record = record_of(spec, score, reason=EVIL, kdbench_version=EVIL, environment=around)
            record = record.model_copy(update={"teachers": (teacher,) if spec.teachers else ()})
            folder = RunFolder(root / "runs" / spec.run_id)
            folder.path.mkdir(parents=True)
            (folder.path / SPEC).write_text(spec.model_dump_json(), encoding="utf-8")
            (folder.path / RECORD).write_text(sealed(record), encoding="utf-8")
    words = ["leaderboard", str(root / "runs"), "--out", str(root / "board"), "--format", "md,html,json,csv,latex"]
    outcome = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return root / "board", outcome.output


def test_the_terminal_gets_no_control_characters(board: tuple[Path, str]) -> None:
    _, shown = board
    assert "HYPERLINK" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


def test_the_page_has_no_element_of_theirs(board: tuple[Path, str]) -> None:
    folder, _ = board
    text = (folder / "leaderboard.html").read_text(encoding="utf-8")
    assert "HYPERLINK" in text
    assert "<img" not in text
    page = Page(text)
    assert not [name for _, given, _ in page.elements for name in given if name.startswith("on")]
    assert sum(name == "script" for name, _, _ in page.elements) == text.count("<script")


def test_no_cell_of_the_spreadsheet_is_a_formula(board: tuple[Path, str]) -> None:
    folder, _ = board
    with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as lines:
        cells = [cell for line in csv.reader(lines) for cell in line]
    assert any("HYPERLINK" in cell for cell in cells)
    assert not [cell for cell in cells if cell.startswith(("=", "@", "\t", "\r"))]


def test_markdown_and_latex_keep_their_tables(board: tuple[Path, str]) -> None:
    folder, _ = board
    markdown = (folder / "leaderboard.md").read_text(encoding="utf-8")
    latex = (folder / "leaderboard.tex").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<img", markdown)
    assert not [line for line in latex.splitlines() if r"\input" in line and not line.startswith("%")]
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    json.loads((folder / "leaderboard.json").read_text(encoding="utf-8"))
