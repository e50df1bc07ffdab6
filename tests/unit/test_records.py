"""Reading records back: truncated, foreign, newer and hostile files each get their message."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from kdbench.errors import StoreError
from kdbench.records import PARTS, Accuracy, Corrupt, Cost, Record, parse_json
from kdbench.spec import PluginRef, RunSpec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.json"


def said(model: type[Record] | type[RunSpec], path: Path, kind: type[StoreError]) -> str:
    with pytest.raises(StoreError) as caught:
        parse_json(model, path)
    assert type(caught.value) is kind
    return str(caught.value)


def test_round_trip(record: Record, path: Path) -> None:
    full = record.model_copy(update={"accuracy": Accuracy(last=1 / 3, best=0.1 + 0.2, last5_mean=5e-324, top5=100.0)})
    path.write_text(full.model_dump_json(indent=2))
    assert parse_json(Record, path) == full


def test_plugins_that_were_loaded_are_in_a_record_and_in_no_older_one(record: Record, path: Path) -> None:
    assert "plugins_loaded" not in record.model_dump_json()
    guest = PluginRef(distribution="guest", version="1.0", file_sha256="ab")
    full = record.model_copy(update={"plugins_loaded": (guest,)})
    path.write_text(full.model_dump_json(indent=2))
    assert json.loads(path.read_text())["plugins_loaded"] == [guest.model_dump()]
    assert parse_json(Record, path) == full


def test_every_truncation_is_found(record: Record, path: Path) -> None:
    text = record.model_dump_json()
    for length in range(0, len(text), 7):
        path.write_text(text[:length])
        assert said(Record, path, Corrupt).startswith(f"{path}: not JSON (half-written or foreign): ")


def test_a_byte_order_mark_is_no_damage(record: Record, path: Path) -> None:
    """Editors of some systems put one in front."""
    path.write_bytes(codecs.BOM_UTF8 + record.model_dump_json().encode())
    assert parse_json(Record, path) == record


@pytest.mark.parametrize("content", [b"\x00" * 100, b"\xff\xfe\x00", b"PK\x03\x04", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_json(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert said(Record, path, Corrupt).startswith(f"{path}: not JSON (half-written or foreign): ")


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '"ok"', "{}", '{"schema_version": "1"}', '{"schema_version": 0}']
)
def test_what_is_no_record(path: Path, content: str) -> None:
    path.write_text(content)
    assert said(Record, path, Corrupt).startswith(f"{path}: not a record of kdbench: ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"status": "fine"}, "status: Input should be 'ok'"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"seed": "three"}, "seed: Input should be a valid integer"),
        ({"seed": True}, "seed: Input should be a valid integer"),
        ({"environment": {"python": "3"}}, "environment.torch: Field required"),
        ({"accuracy": {"last": None}}, "accuracy.last: Input should be a valid number"),
    ],
)
def test_wrong_fields(record: Record, path: Path, change: dict[str, object], problem: str) -> None:
    path.write_text(json.dumps(record.model_dump(mode="json") | change))
    assert said(Record, path, Corrupt).startswith(f"{path}: not a record of kdbench: {problem}")


def test_newer_schema_is_not_corrupt(record: Record, spec: RunSpec, path: Path) -> None:
    path.write_text(json.dumps(record.model_dump(mode="json") | {"schema_version": 2, "colour": "red"}))
    assert said(Record, path, StoreError) == f"{path}: record schema 2, this kdbench reads 1; upgrade kdbench"
    path.write_text(json.dumps(spec.model_dump(mode="json") | {"schema_version": 2}))
    assert said(RunSpec, path, StoreError) == f"{path}: runspec schema 2, this kdbench reads 1; upgrade kdbench"


def test_unreadable_is_not_corrupt(tmp_path: Path) -> None:
    assert said(Record, tmp_path / "x", StoreError) == f"{tmp_path / 'x'}: cannot be read (No such file or directory)"
    assert said(Record, tmp_path, StoreError) == f"{tmp_path}: cannot be read (Is a directory)"


def test_a_record_is_no_spec(record: Record, path: Path) -> None:
    path.write_text(record.model_dump_json())
    assert "not a runspec of kdbench" in said(RunSpec, path, Corrupt)


def test_not_finite_measurements_survive_as_null(record: Record, path: Path) -> None:
    """JSON has no NaN: a diverged run's loss is null, never a token other readers choke on."""
    path.write_text(record.model_copy(update={"nll": float("nan")}).model_dump_json())
    assert "NaN" not in path.read_text()
    assert parse_json(Record, path).nll is None


def test_a_cost_from_before_its_parts_were_metered_keeps_its_bytes() -> None:
    cost = Cost(
        train_seconds=1.5, images_per_second=2.5, student_forwards=3, teacher_forwards=4, peak_memory_bytes=5,
        train_only_parameters=6, deployed_parameters=7, deployed_flops=8,
    )  # fmt: skip
    assert cost.parts == {}
    assert not [key for key in json.loads(cost.model_dump_json()) if key.removesuffix("_seconds") in PARTS]
    parts = {f"{part}_seconds": float(place) for place, part in enumerate(PARTS)}
    metered = Cost.model_validate(cost.model_dump() | parts)
    assert metered.parts == dict(zip(PARTS, range(5), strict=True))
    assert Cost.model_validate_json(metered.model_dump_json()) == metered


def test_a_cost_without_cached_outputs_has_the_bytes_it_had(record: Record) -> None:
    ones = dict.fromkeys(set(Cost.model_fields) - {"teacher_cached"}, 1)
    assert "teacher_cached" not in Cost(**ones).model_dump_json()
    assert Cost.model_validate_json(Cost(**ones, teacher_cached=7).model_dump_json()).teacher_cached == 7


def test_numbers_are_the_results_that_are_there(record: Record) -> None:
    cost = Cost(
        train_seconds=1.5, images_per_second=2.5, student_forwards=3, teacher_forwards=4, teacher_cached=9,
        peak_memory_bytes=5, train_only_parameters=6, deployed_parameters=7, deployed_flops=8,
    )  # fmt: skip
    accuracy = Accuracy(last=50.0, best=60.0, last5_mean=55.0, top5=90.0)
    results = {"nll": 1.25, "ece": None, "agreement_with_teacher": 75.0}
    full = record.model_copy(update={"accuracy": accuracy, "cost": cost, **results})
    assert full.numbers() == {
        "accuracy.last": 50.0, "accuracy.best": 60.0, "accuracy.last5_mean": 55.0, "accuracy.top5": 90.0,
        "cost.train_seconds": 1.5, "cost.images_per_second": 2.5, "cost.student_forwards": 3.0,
        "cost.teacher_forwards": 4.0, "cost.teacher_cached": 9.0, "cost.peak_memory_bytes": 5.0,
        "cost.train_only_parameters": 6.0,
        "cost.deployed_parameters": 7.0, "cost.deployed_flops": 8.0, "nll": 1.25, "agreement_with_teacher": 75.0,
    }  # fmt: skip
    nothing = {"accuracy": None, "cost": None, "nll": None, "ece": None, "agreement_with_teacher": None}
    assert record.model_copy(update=nothing).numbers() == {}
