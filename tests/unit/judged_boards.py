"""Boards for the tests of judgements: made-up scores with made-up answers to test images."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kdbench.config.schema import Anchor, Data, Loss, Optimizer, Schedule, Step
from kdbench.leaderboard import Cell, Leaderboard, build
from kdbench.leaderboard.answers import Answers
from kdbench.records import Accuracy, Cost, Environment, Record, TeacherUsed
from kdbench.spec import DatasetRef, PluginRef, RunSpec

ANCHOR = Anchor(
    name="proto",
    loss=Loss(ce_alpha=0.5, kd_alpha=0.5),
    optimizer=Optimizer(lr=0.1, weight_decay=0.0),
    schedule=Schedule(epochs=3),
    data=Data(batch_size=8),
    step=Step(),
)
BASELINES = ("alone", "plain")
# Five seeds with a mean of zero and a spread of .1; each other method has them in another order.
NOISE = (-0.14, 0.05, 0.0, 0.14, -0.05)


def cell(method: str, seed: int, score: float | None, dataset: str = "toy", **changes: Any) -> Cell:
    """Return a run: ok, or diverged without a score."""
    values: dict[str, Any] = {
        "method": method,
        "method_version": 1,
        "plugin": PluginRef(distribution="dist", version="1.0"),
        "options": {},
        "pair": "duo",
        "student": "small",
        "teachers": () if method == "alone" else ("big",),
        "dataset": DatasetRef(name=dataset, slug=dataset, fingerprint=(dataset * 20)[:20]),
        "anchor": ANCHOR,
        "seed": seed,
    }
    spec = RunSpec(**(values | changes))
    same = ("run_id", "config_sha256", "method", "method_version", "variant", "plugin", "options", "division")
    ones: dict[str, Any] = dict.fromkeys(Cost.model_fields, 1)
    record = Record(
        **{name: getattr(spec, name) for name in (*same, "deviations", "pair", "student", "seed")},
        kdbench_version="0.1.0",
        dataset=spec.dataset.label,
        dataset_ref=spec.dataset,
        status="ok" if score is not None else "diverged",
        classes=100,
        anchor=ANCHOR.label,
        anchor_sha256=ANCHOR.sha256,
        teachers=(TeacherUsed(name="big", sha256="a" * 64, accuracy=80.0),) if spec.teachers else (),
        accuracy=None if score is None else Accuracy(last=score, best=score, last5_mean=score, top5=99.0),
        cost=Cost(**ones) if score is not None else None,
        environment=Environment(python="3.11", torch="2.14", device="cpu", threads=2, commit="c0ffee", machine="box"),
        started_at="2025-01-01T00:00:00Z",
        ended_at="2025-01-01T00:01:00Z",
    )
    return Cell(spec, record)


def arm(method: str, *scores: float | None, **changes: Any) -> list[Cell]:
    """Return a run a score; seeds count from 0."""
    return [cell(method, seed, score, **changes) for seed, score in enumerate(scores)]


def noisy(method: str, mean: float, turn: int = 0, scale: float = 1.0, **changes: Any) -> list[Cell]:
    """Return five runs of that mean, their noise turned so that methods do not rise and fall together."""
    return arm(method, *(round(mean + scale * NOISE[(seed + turn) % 5], 4) for seed in range(5)), **changes)


def clear(**changes: Any) -> list[Cell]:
    """Return four methods, of which one is better than all others by a point."""
    return [
        *noisy("alone", 70.0, **changes),
        *noisy("plain", 72.0, 1, **changes),
        *noisy("other", 72.1, 2, **changes),
        *noisy("best", 73.5, 3, **changes),
    ]


def answers(images: int = 10_000, disagree: float = 0.0) -> Callable[[Cell], Answers | None]:
    """Return a reader whose runs have as many images right as their scores say.

    Args:
        images: Number of test images.
        disagree: Share of the images of which each method has other ones right; of the rest, a better run has right
            whatever a worse one has.
    """

    def read(cell: Cell) -> Answers | None:
        if cell.record is None or cell.record.accuracy is None:
            return None
        right = np.arange(images) < round(cell.record.accuracy.last / 100 * images)
        # Which images are hard depends on the method, so that methods err on systematically different ones.
        mixed = np.random.default_rng(list(cell.spec.method.encode())).permutation(images)[: round(disagree * images)]
        right[np.sort(mixed)] = right[mixed]
        return Answers(np.packbits(right), images)

    return read


def judged(cells: Iterable[Cell], **kwargs: Any) -> Leaderboard:
    """Return the board with answers unless told otherwise."""
    return build(cells, BASELINES, claims=(), **({"answers": answers()} | kwargs))


def shuffled(cells: list[Cell], seed: int) -> list[Cell]:
    """Return the runs in another order."""
    return random.Random(seed).sample(cells, len(cells))
