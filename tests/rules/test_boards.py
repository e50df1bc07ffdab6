"""Published boards are what their records say, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.leaderboard import Cell, build, read_answers, to_json, to_markdown
from kdbench.registry import Registry
from kdbench.store import RunStore

BOARDS = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "leaderboards").glob("*/leaderboard.md"))


def test_there_are_boards() -> None:
    assert BOARDS


@pytest.mark.parametrize("folder", BOARDS, ids=lambda path: path.name)
def test_rebuilding_gives_the_same_tables(folder: Path, registry: Registry) -> None:
    runs = RunStore(folder / "runs").runs()
    assert runs
    baselines = sorted((m for m in registry.methods.values() if m.baseline), key=lambda m: m.uses_teacher)
    cells = [Cell(spec, run.peek(), str(run.path)) for run, spec in runs]
    board = build(cells, [m.name for m in baselines], answers=read_answers)
    assert to_markdown(board) == (folder / "leaderboard.md").read_text(encoding="utf-8")
    assert to_json(board) == (folder / "leaderboard.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", BOARDS, ids=lambda path: path.name)
def test_the_predictions_give_the_recorded_accuracy(folder: Path) -> None:
    import numpy as np

    for run, _ in RunStore(folder / "runs").runs():
        record = run.peek()
        assert record is not None
        if record.accuracy is None:
            continue
        with np.load(run.path / "predictions.npz", allow_pickle=False) as archive:
            correct = np.unpackbits(archive["correct"], count=int(archive["count"]))
        assert record.accuracy.last == pytest.approx(100 * correct.mean(), abs=1e-9)


def test_the_readme_shows_the_table_of_a_board() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- board:start -->")[2].partition("<!-- board:end -->")[0]
    table = [line for line in shown.splitlines() if line.startswith("|")]
    board = [line for folder in BOARDS for line in (folder / "leaderboard.md").read_text(encoding="utf-8").splitlines()]
    assert len(table) > 2
    assert [line for line in table if line not in board] == []
