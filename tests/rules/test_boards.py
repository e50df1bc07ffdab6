"""Published boards are what their records say, byte for byte, and stay as they were published."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.leaderboard.manifest import MANIFEST
from kdbench.verification import verify

BOARDS = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "leaderboards").glob("*/leaderboard.md"))


def test_there_are_boards() -> None:
    assert BOARDS


@pytest.mark.parametrize("folder", BOARDS, ids=lambda path: path.name)
def test_boards_verify(folder: Path) -> None:
    assert (folder / MANIFEST).is_file()
    assert (folder / "leaderboard.json").is_file()
    checks = verify(folder)
    assert [problem for check in checks for problem in check.problems] == []
    assert [check.name for check in checks][-1] == "tables"
    assert checks[-1].said.startswith("json, md built again from ")


def test_the_readme_shows_the_table_of_a_board() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- board:start -->")[2].partition("<!-- board:end -->")[0]
    table = [line for line in shown.splitlines() if line.startswith("|")]
    board = [line for folder in BOARDS for line in (folder / "leaderboard.md").read_text(encoding="utf-8").splitlines()]
    assert len(table) > 2
    assert [line for line in table if line not in board] == []
