"""The table of epochs: columns, digits, and what happens to text and to values that are not there."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from kdbench.epoch_table import epoch_table
from kdbench.records import EpochReport
from kdbench.store import EPOCH_TABLE, EPOCHS, RunFolder

RUN = "anchor-v1/digits/tiny/method/seed0"


def report(**changes: object) -> EpochReport:
    fields = {
        "run_id": RUN, "phase": "main", "epoch": 0, "epochs": 2, "learning_rate": 0.1, "losses": {"ce": 2 / 3},
        "images_per_second": 1234567.891, "seconds": 0.5,
    } | changes  # fmt: skip
    return EpochReport.model_validate(fields)


def test_one_line_per_value() -> None:
    assert epoch_table([report(metrics={"gap": 1e-12, "chosen": 'a, "b"', "none": None}, train_accuracy=50.0)]) == (
        "run_id,phase,epoch,name,value\n"
        f"{RUN},main,0,learning_rate,0.1\n"
        f"{RUN},main,0,losses.ce,0.666666667\n"
        f"{RUN},main,0,metrics.gap,1e-12\n"
        f'{RUN},main,0,metrics.chosen,"a, ""b"""\n'
        f"{RUN},main,0,metrics.none,\n"
        f"{RUN},main,0,train_accuracy,50\n"
        f"{RUN},main,0,validation_accuracy,\n"
        f"{RUN},main,0,test_accuracy,\n"
        f"{RUN},main,0,images_per_second,1234567.89\n"
        f"{RUN},main,0,seconds,0.5\n"
    )


def test_the_table_says_what_the_lines_say(tmp_path: Path) -> None:
    reports = [
        report(losses={"ce": float("nan"), "kd": 1 / 7}, metrics={"words": "two\nlines"}),
        report(phase="init", losses={"fit": 3e38}, number=1),
        report(epoch=1, number=2, test_accuracy=100 / 3),
    ]
    folder = RunFolder(tmp_path)
    folder.write_epochs(iter(reports))
    with (tmp_path / EPOCH_TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (tmp_path / EPOCHS).read_text(encoding="utf-8").splitlines()
    expected = [
        (r, name, value) for r in map(EpochReport.model_validate_json, lines) for name, value in r.named().items()
    ]
    assert len(rows) == len(expected) == 3 * 6 + 5
    for row, (written, name, value) in zip(rows, expected, strict=True):
        assert (row["run_id"], row["phase"], row["epoch"]) == (RUN, written.phase, str(written.epoch))
        assert row["name"] == name
        if isinstance(value, float):
            assert float(row["value"]) == pytest.approx(value, rel=5e-9)
        else:
            assert row["value"] == (value or "")
    assert {path.name for path in tmp_path.iterdir()} == {EPOCHS, EPOCH_TABLE}


def test_without_an_epoch_there_is_a_header() -> None:
    assert epoch_table([]) == "run_id,phase,epoch,name,value\n"
