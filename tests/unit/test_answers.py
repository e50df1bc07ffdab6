"""Which images a run had right: read from its file, or refused with what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_boards import cell

from kdbench.errors import StoreError
from kdbench.leaderboard import Cell, read_answers


def run(folder: Path, **changes: Any) -> Cell:
    right = np.arange(1000) < 725
    arrays: dict[str, Any] = {"correct": np.packbits(right), "predicted": np.zeros(1000, np.uint8), "count": 1000}
    kept = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez_compressed(folder / "predictions.npz", **kept)
    return replace(cell("m", 0, 72.5), path=str(folder))


def test_the_bits_of_a_run(tmp_path: Path) -> None:
    answers = read_answers(run(tmp_path))
    assert answers is not None
    assert answers.images == 1000
    assert np.unpackbits(answers.bits, count=1000).sum() == 725


def test_no_file_no_record_or_no_result_is_no_error(tmp_path: Path) -> None:
    assert read_answers(replace(cell("m", 0, 72.5), path=str(tmp_path))) is None
    there = run(tmp_path)
    assert read_answers(replace(there, record=None)) is None
    assert read_answers(replace(there, path="")) is None
    assert read_answers(replace(cell("m", 0, None), path=str(tmp_path))) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _foreign(path: Path) -> None:
    path.write_text("predictions")


@pytest.mark.parametrize("damage", [_cut, _foreign])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    there = run(tmp_path)
    damage(tmp_path / "predictions.npz")
    with pytest.raises(StoreError, match=r"predictions\.npz: not the predictions of a run \(half-written or foreign: "):
        read_answers(there)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct": None}, "it has no 'correct"),
        ({"count": 2000}, "are not one bit for each of 2000 images"),
        ({"correct": np.zeros(125)}, r"\(125,\) float64 are not one bit"),
        ({"correct": np.packbits(np.arange(1000) < 724)}, "724 of 1000 right, but the record says 72.5 %"),
        ({"count": 999, "correct": np.packbits(np.ones(1000, bool))}, "bits beyond its 999 images"),
    ],
)
def test_predictions_that_are_not_of_the_record(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        read_answers(run(tmp_path, **changes))
    assert "restore it, or remove it to do without SE_test" in str(caught.value)
