"""Seals: a flipped bit in a record or a teacher's manifest is found, even where it leaves valid JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.errors import StoreError
from kdbench.records import Accuracy, Corrupt, Record, parse_json
from kdbench.seal import SEAL, sealed
from kdbench.store import RECORD, RunStore


@pytest.fixture
def scored(record: Record) -> Record:
    accuracy = Accuracy(last=73.25, best=73.5, last5_mean=1 / 3, top5=1e-5)
    return record.model_copy(update={"status": "ok", "reason": "naïve ☃", "accuracy": accuracy, "nll": 1e22})


def test_a_sealed_record_reads_back(scored: Record, tmp_path: Path) -> None:
    path = tmp_path / RECORD
    path.write_text(sealed(scored), encoding="utf-8")
    assert parse_json(Record, path) == scored
    assert sealed(parse_json(Record, path)) == path.read_text(encoding="utf-8")


def test_a_record_from_before_seals_reads_as_ever(scored: Record, tmp_path: Path) -> None:
    path = tmp_path / RECORD
    path.write_text(scored.model_dump_json(indent=2), encoding="utf-8")
    assert parse_json(Record, path) == scored


def test_every_flipped_bit_is_found_or_says_the_same(scored: Record, tmp_path: Path) -> None:
    path, data = tmp_path / RECORD, sealed(scored).encode()
    found = newer = 0
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ (1 << index % 8)]) + data[index + 1 :])
        try:
            assert parse_json(Record, path) == scored
        except Corrupt:
            found += 1
        except StoreError:
            newer += 1
    assert newer == 0, "a flipped bit makes no file of a newer kdbench, not even in the number of the schema"
    assert found > 0.7 * len(data), "the rest is white space"


def test_a_changed_score_is_set_aside_and_the_run_counts_as_unfinished(scored: Record, tmp_path: Path) -> None:
    folder = RunStore(tmp_path).folder(scored.run_id)
    folder.write_record(scored)
    path = folder.path / RECORD
    better = path.read_text(encoding="utf-8").replace("73.25", "83.25")
    path.write_text(better, encoding="utf-8")
    with pytest.raises(Corrupt, match=r"record.json: damaged: its content does not fit its seal; bring back the file"):
        folder.peek()
    assert folder.record() is None
    assert path.with_name(f"{RECORD}.corrupt").read_text(encoding="utf-8") == better


@pytest.mark.parametrize("seal", ["", None, 5, "0" * 64])
def test_a_seal_that_is_none(scored: Record, tmp_path: Path, seal: object) -> None:
    path = tmp_path / RECORD
    path.write_text(json.dumps({**json.loads(sealed(scored)), SEAL: seal}), encoding="utf-8")
    with pytest.raises(Corrupt, match="does not fit its seal"):
        parse_json(Record, path)
