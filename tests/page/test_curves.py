"""Learning curves: read, thinned, averaged; damage is named."""

from __future__ import annotations

import itertools
from pathlib import Path

import madeup
import pytest

from kdbench.errors import StoreError
from kdbench.leaderboard import build, read_cells
from kdbench.leaderboard.curves import POINTS, mean_curve, read_curve, thinned
from kdbench.records import EpochReport
from kdbench.store import RunStore


def report(epoch: int, accuracy: float | None, phase: str = "main", student_epoch: int | None = None) -> EpochReport:
    return EpochReport(
        run_id="r",
        phase=phase,
        epoch=epoch,
        epochs=9,
        student_epoch=student_epoch,
        learning_rate=0.1,
        losses={"ce": 1.0},
        test_accuracy=accuracy,
        images_per_second=1.0,
        seconds=1.0,
    )


def written(folder: Path, *reports: EpochReport) -> Path:
    (folder / "epochs.jsonl").write_text("".join(f"{each.model_dump_json()}\n" for each in reports), encoding="utf-8")
    return folder


def test_epochs_count_from_one_and_phases_without_a_test_are_no_part(tmp_path: Path) -> None:
    reports = (report(0, None, "helper"), report(0, 10.0), report(1, None), report(2, 12.5))
    assert read_curve(written(tmp_path, *reports)) == ((1, 10.0), (3, 12.5))


def test_a_main_phase_in_parts_counts_the_students_epochs(tmp_path: Path) -> None:
    parts = [report(0, 10.0, "b1", 0), report(1, 11.0, "b1", 1), report(0, 12.0, "b2", 2), report(1, 13.0, "b2", 3)]
    assert read_curve(written(tmp_path, *parts)) == ((1, 10.0), (2, 11.0), (3, 12.0), (4, 13.0))


def test_a_run_without_epochs_has_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == ()


@pytest.mark.parametrize("text", ["{", '{"epoch": 1}\n', "nonsense\n", "\xff"])
def test_damage_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "epochs.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"epochs\.jsonl: .*; restore it, or remove it to leave its curve out"):
        read_curve(tmp_path)


def test_thinning_keeps_the_ends_and_is_even() -> None:
    curve = tuple((epoch, float(epoch)) for epoch in range(1, 241))
    thin = thinned(curve)
    assert len(thin) == POINTS
    assert (thin[0], thin[-1]) == (curve[0], curve[-1])
    steps = {after[0] - before[0] for before, after in itertools.pairwise(thin)}
    assert steps <= {8, 9}
    assert thinned(curve[:POINTS]) == curve[:POINTS]
    assert thinned(curve, 2) == (curve[0], curve[-1])


def test_the_mean_is_over_ok_seeds_at_epochs_all_have() -> None:
    curves = (((1, 10.0), (2, 20.0), (3, 30.0)), ((1, 14.0), (3, 36.0)))
    cells = [
        madeup.Cell(cell.spec, cell.record, curve=curve)
        for cell, curve in zip(madeup.arm("m", 30.0, 36.0), curves, strict=True)
    ]
    (row,) = build([*cells, madeup.cell("m", 2, None)], ()).tables[0].rows
    assert mean_curve(row) == ((1, 12.0), (3, 33.0))
    (row,) = build(madeup.arm("m", 30.0), ()).tables[0].rows
    assert mean_curve(row) == ()


def test_curves_are_read_when_asked_for_and_of_ok_runs_alone(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for seed, score in enumerate((70.0, None)):
        cell = madeup.cell("m", seed, score)
        assert cell.record
        folder = store.folder(cell.spec.run_id)
        folder.write_spec(cell.spec)
        folder.write_record(cell.record)
        folder.write_epochs([report(0, 10.0), report(1, 70.0)])
    assert [cell.curve for cell in read_cells(store.runs())] == [(), ()]
    assert [cell.curve for cell in read_cells(store.runs(), curves=True)] == [((1, 10.0), (2, 70.0)), ()]
