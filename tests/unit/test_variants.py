"""Several configurations of one method live in one store and one table, each under a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import ConfigError, ProblemList
from kdbench.leaderboard import Cell, build, to_csv, to_json, to_markdown
from kdbench.plan import Request, make_plan
from kdbench.records import Accuracy, Environment, Record
from kdbench.registry import Registry
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.results import identity_of


def record(spec: RunSpec, accuracy: float) -> Record:
    environment = Environment(python="3", torch="2", device="cpu", threads=1, commit="c")
    return Record(
        **identity_of(spec), status="ok", classes=10, environment=environment, started_at="", ended_at="",
        accuracy=Accuracy(last=accuracy, best=accuracy, last5_mean=accuracy, top5=100),
    )  # fmt: skip


def variants(spec: RunSpec, **options: Any) -> list[RunSpec]:
    changed = [spec.model_copy(update={"variant": name, "options": {"x": value}}) for name, value in options.items()]
    return [one.model_copy(update={"seed": seed}) for one in changed for seed in (0, 1)]


def test_a_variant_has_a_run_id_and_a_hash_of_its_own(spec: RunSpec) -> None:
    named = spec.model_copy(update={"variant": "a.b-1"})
    assert named.row == f"{spec.method}@a.b-1"
    assert named.run_id == spec.run_id.replace(f"/{spec.method}/", f"/{spec.method}@a.b-1/")
    assert named.config_sha256 != spec.config_sha256
    assert "variant" not in spec.hashed()  # so that what was published keeps its hash


@pytest.mark.parametrize("name", ["a/b", "@", "a b", ".a", "x" * 65])
def test_what_is_no_name_of_a_variant(spec: RunSpec, registry: Registry, name: str) -> None:
    with pytest.raises(ValueError, match="variant"):
        RunSpec.model_validate({**spec.model_dump(), "variant": name})
    with pytest.raises(ProblemList) as caught:
        make_plan(Request(("student",), ("tiny",), (0,), "crd_smoke", variant=name), registry)
    assert caught.value.problems == (f"--variant: {name!r} is no name; use letters, digits, '.', '_' and '-'",)


def test_a_store_keeps_them_apart(spec: RunSpec, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.register([spec, *variants(spec, low=1, high=2)])
    assert [found.row for _, found in store.runs()] == [
        spec.method, *[f"{spec.method}@high"] * 2, *[f"{spec.method}@low"] * 2,
    ]  # fmt: skip
    for wrong in ("a/b/c/m@/seed0", "a/b/c@v/m/seed0", "a/b/c/m@v@w/seed0", "a/b/c/@v/seed0"):
        with pytest.raises(ConfigError, match=r"not a run id \(anchor/dataset/pair/method\[@variant\]/seedK\)"):
            store.folder(wrong)


def test_a_board_has_a_row_for_each(spec: RunSpec) -> None:
    runs = variants(spec, low=1, high=2)
    cells = [Cell(one, record(one, 80 + place)) for place, one in enumerate(runs)]
    (table,) = build(cells, [spec.method]).tables
    assert [(row.method, row.scored.mean if row.scored else None) for row in table.rows] == [
        (f"{spec.method}@high", 82.5), (f"{spec.method}@low", 80.5),
    ]  # fmt: skip
    assert table.baselines == ()  # no variant stands for the method itself
    board = build(cells, [])
    assert all(f"{spec.method}@low" in write(board) for write in (to_markdown, to_json, to_csv))


def test_a_record_of_another_variant_is_refused(spec: RunSpec) -> None:
    low, high = variants(spec, low=1)[0], variants(spec, high=1)[0]
    moved = record(low, 80.0).model_copy(update={"run_id": high.run_id, "config_sha256": high.config_sha256})
    with pytest.raises(ProblemList, match="variant is low in the record and high in the spec"):
        build([Cell(high, moved)], [])


def test_a_plan_names_its_runs(registry: Registry) -> None:
    plan = make_plan(Request(("student",), ("tiny",), (0, 1), "crd_smoke", variant="twice"), registry)
    assert [run.row for run in plan.runs] == ["student@twice"] * 2
    assert list(plan.passes) == [("tiny", "student@twice")]
