"""How long, and in how much memory, a board is built from many records; prints a table.

    python tests/bench/board.py [RECORDS ...]

Records are made up before the clock starts: 50 methods, 5 seeds, as many pairs as it takes.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time

from report_lines import Sheet

from kdbench.config.schema import Anchor, Data, Loss, Optimizer, Schedule, Step
from kdbench.leaderboard import Cell, build, to_csv, to_json, to_markdown
from kdbench.records import Accuracy, Cost, Environment, Record, TeacherUsed
from kdbench.spec import DatasetRef, PluginRef, RunSpec

METHODS, SEEDS = 50, 5
BASELINES = ("alone", "plain")


def made_up(records: int, methods: int = METHODS, seeds: int = SEEDS) -> list[Cell]:
    """Return the finished runs of that many records, rounded up to whole pairs; the same ones every time."""
    anchor = Anchor(
        name="proto",
        loss=Loss(ce_alpha=0.5, kd_alpha=0.5),
        optimizer=Optimizer(lr=0.1, weight_decay=0.0),
        schedule=Schedule(epochs=3),
        data=Data(batch_size=8),
        step=Step(),
    )
    chance = random.Random(0)
    names = [*BASELINES, *(f"method_{index:02}" for index in range(methods - len(BASELINES)))]
    pairs = -(-records // (methods * seeds))
    return [
        _cell(anchor, name, f"pair_{pair:04}", f"set_{pair % 2}", seed, round(70 + i / 20 + chance.gauss(0, 0.3), 2))
        for pair in range(pairs)
        for i, name in enumerate(names)
        for seed in range(seeds)
    ]


def _cell(anchor: Anchor, method: str, pair: str, dataset: str, seed: int, score: float) -> Cell:
    teachers = () if method == BASELINES[0] else ("big",)
    spec = RunSpec(
        method=method,
        method_version=1,
        plugin=PluginRef(distribution="dist", version="1.0"),
        options={"beta": 2.0},
        pair=pair,
        student="small",
        teachers=teachers,
        dataset=DatasetRef(name=dataset, slug=dataset, fingerprint=dataset * 4),
        anchor=anchor,
        seed=seed,
    )
    record = Record(
        kdbench_version="0.1.0",
        run_id=spec.run_id,
        config_sha256=spec.config_sha256,
        status="ok",
        method=method,
        method_version=1,
        plugin=spec.plugin,
        options=spec.options,
        division=spec.division,
        pair=pair,
        student="small",
        dataset=spec.dataset.label,
        dataset_ref=spec.dataset,
        classes=100,
        anchor=anchor.label,
        anchor_sha256=anchor.sha256,
        seed=seed,
        teachers=(TeacherUsed(name="big", sha256="a" * 64, accuracy=80.0),) if teachers else (),
        accuracy=Accuracy(last=score, best=score, last5_mean=score, top5=99.0),
        cost=Cost(
            train_seconds=10.0 + seed,
            images_per_second=1000.0,
            student_forwards=10**6,
            teacher_forwards=10**6,
            peak_memory_bytes=10**9,
            train_only_parameters=0,
            deployed_parameters=12345,
            deployed_flops=10**7,
        ),
        environment=Environment(python="3.11", torch="2.14", device="cpu", threads=2, commit="c0ffee", machine="box"),
        started_at="2025-01-01T00:00:00Z",
        ended_at="2025-01-01T00:01:00Z",
    )
    return Cell(spec, record)


def measure(sheet: Sheet, records: int) -> None:
    """Add the lines of a board of that many records."""
    cells = made_up(records)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    board = build(cells, BASELINES, claims=())
    built = time.perf_counter()
    for write in (to_markdown, to_json, to_csv):
        write(board)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    subject = f"{len(cells):,} records"
    sheet.add("build", built - start, subject=subject, unit="s")
    sheet.add("write", done - built, subject=subject, unit="s")
    sheet.add("peak memory with the records alone", before / 1024, subject=subject, unit="MiB")
    sheet.add("peak memory", peak / 1024, subject=subject, unit="MiB")


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [1_000, 10_000]
    build(made_up(1000), BASELINES, claims=())  # what is imported or kept is not measured
    with Sheet("board", "Building a board", "Markdown, JSON and CSV of 50 methods and 5 seeds.") as sheet:
        for size in sizes:
            measure(sheet, size)


if __name__ == "__main__":
    main()
