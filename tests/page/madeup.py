"""Boards from made-up records, of any size, the same every time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdbench.config.schema import Anchor, Data, Loss, Optimizer, Schedule, Step
from kdbench.leaderboard import Cell, Leaderboard, build
from kdbench.leaderboard.curves import thinned
from kdbench.records import Accuracy, Cost, Environment, Record, TeacherUsed
from kdbench.spec import DatasetRef, DeclaredDeviation, PluginRef, RunSpec

EPOCHS = 240
ANCHOR = Anchor(
    name="proto",
    loss=Loss(ce_alpha=0.5, kd_alpha=0.5),
    optimizer=Optimizer(lr=0.1, weight_decay=0.0),
    schedule=Schedule(epochs=EPOCHS),
    data=Data(batch_size=8),
    step=Step(),
)
DATASET = DatasetRef(name="toy", slug="toy", fingerprint="f" * 20)
BASELINES = ("alone", "plain")
TEACHER = TeacherUsed(name="big", sha256="a" * 64, accuracy=79.5)
ENVIRONMENT = Environment(python="3.11", torch="2.14", device="cpu", threads=2, commit="c0ffee", machine="box")


def spec_of(method: str, seed: int, **changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "method": method,
        "method_version": 1,
        "plugin": PluginRef(distribution="dist", version="1.0"),
        "options": {"beta": 2.0},
        "pair": "duo",
        "student": "small",
        "teachers": () if method == BASELINES[0] else ("big",),
        "dataset": DATASET,
        "anchor": ANCHOR,
        "seed": seed,
    }
    return RunSpec(**(values | changes))


def record_of(spec: RunSpec, score: float | None, **changes: Any) -> Record:
    same = ("run_id", "config_sha256", "method", "method_version", "plugin", "options", "division", "deviations")
    number = sum(map(ord, spec.method))
    ones: dict[str, Any] = dict.fromkeys(Cost.model_fields, 1)
    cost = Cost(**ones | {"train_seconds": 100.0 + number % 97 + spec.seed / 8, "deployed_parameters": 10_000 + number})
    values: dict[str, Any] = {name: getattr(spec, name) for name in (*same, "pair", "student", "seed")}
    values |= {
        "kdbench_version": "0.1.0",
        "dataset": spec.dataset.label,
        "dataset_ref": spec.dataset,
        "status": "ok" if score is not None else "diverged",
        "classes": 100,
        "anchor": spec.anchor.label,
        "anchor_sha256": spec.anchor.sha256,
        "teachers": (TEACHER,) if spec.teachers else (),
        "accuracy": None if score is None else Accuracy(last=score, best=99.0, last5_mean=score, top5=99.0),
        "agreement_with_teacher": 80 + score / 10 if score and spec.teachers else None,
        "cost": cost if score is not None else None,
        "environment": ENVIRONMENT,
        "started_at": "2025-01-01T00:00:00Z",
        "ended_at": "2025-01-01T00:01:00Z",
    }
    return Record(**(values | changes))


def cell(method: str, seed: int, score: float | None, *, curve: bool = False, **changes: Any) -> Cell:
    spec = spec_of(method, seed, **changes)
    points = [(e + 1, (score or 0) * (1 - math.exp(-(e + 9) / 40))) for e in range(EPOCHS)] if curve and score else []
    return Cell(spec, record_of(spec, score), curve=thinned(tuple(points)))


def arm(method: str, *scores: float | None, **changes: Any) -> list[Cell]:
    return [cell(method, seed, score, **changes) for seed, score in enumerate(scores)]


def small(*more: Cell, **changes: Any) -> Leaderboard:
    """Return three methods with three seeds each, and whatever else is given."""
    cells = [
        *arm("alone", 70.0, 71.0, 72.0, **changes),
        *arm("plain", 71.0, 72.5, 73.0, **changes),
        *arm("fancy", 73.0, 73.0, 73.6, **changes),
    ]
    return build([*cells, *more], BASELINES)


def varied() -> Leaderboard:
    """Return two pairs and both divisions, with curves, a run that diverged and one that is missing."""
    changed = (DeclaredDeviation(key="loss.tau", value=2.0, reason="as published"),)
    freed = arm("freed", 71.0, 72.5, 73.0, deviations=changed, curve=True)
    trio = [*arm("alone", 60.0, 61.0, pair="trio"), *arm("plain", 62.5, None, pair="trio")]
    return small(*freed, *trio, *arm("wild", 74.0, 75.0, None), Cell(spec_of("fancy", 3)), curve=True)


def large(methods: int, pairs: int, seeds: int = 5) -> Leaderboard:
    """Return a board of that size; its pairs differ in name alone, which is all that its size depends on."""
    chance = random.Random(0)
    names = [*BASELINES, *(f"method_{index:02}" for index in range(methods - len(BASELINES)))]
    cells: list[Cell] = []
    for index, name in enumerate(names):
        cells += arm(name, *(round(70 + index / 20 + chance.gauss(0, 0.3), 2) for _ in range(seeds)), curve=True)
    (table,) = build(cells, BASELINES).tables
    return Leaderboard(tuple(replace(table, pair=f"teacher{index:02}_student") for index in range(pairs)))


def renamed(board: Leaderboard, names: Sequence[str]) -> Leaderboard:
    """Return the board with its methods renamed, the baselines among them, also to what no plan would let pass."""
    (table,) = board.tables
    new = dict(zip((row.method for row in table.rows), names, strict=True))
    rows = tuple(
        replace(row, method=new[row.method], gains=tuple(replace(g, baseline=new[g.baseline]) for g in row.gains))
        for row in table.rows
    )
    return Leaderboard((replace(table, rows=rows, baselines=tuple(new[name] for name in table.baselines)),))
