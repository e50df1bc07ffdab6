"""How long, and in how much memory, boards are read, built and written from many records; prints a table.

    python tests/bench/board.py [RECORDS ...]

Records are made up, and written to a store of their own, before the clock starts: 50 methods, 5 seeds, as many pairs
as it takes, with predictions of 10,000 test images each and without learning curves. Times are of the processor, so
that other work on the machine does not count.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from report_lines import Sheet

from kdbench.config.schema import Anchor, Data, Loss, Optimizer, Schedule, Step
from kdbench.leaderboard import FORMATS, Cell, build, read_answers, read_cells, write
from kdbench.records import Accuracy, Cost, Environment, Record, TeacherUsed
from kdbench.seal import sealed
from kdbench.spec import DatasetRef, PluginRef, RunSpec
from kdbench.store import PREDICTIONS, RECORD, SPEC, RunFolder, RunStore

METHODS, SEEDS, IMAGES = 50, 5, 10_000
SIZES = (1_000, 10_000, 100_000)
SECONDS, MEGABYTES = {10_000: 5.0}.get, {10_000: 500.0}.get  # targets
ROUNDS = 5  # of boards that take seconds; the largest are made once
GROWTH = 1.25  # at most: time per record of a board ten times as large, so that time grows with the records
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


def stored(cells: list[Cell], root: Path) -> int:
    """Write a store with specs, records and predictions that have the recorded accuracy, and return how many."""
    chance = np.random.default_rng(0)
    for cell in cells:
        folder = RunFolder(root / cell.spec.run_id)
        folder.path.mkdir(parents=True)
        if cell.record and cell.record.accuracy:
            right = chance.permutation(IMAGES) < round(cell.record.accuracy.last * IMAGES / 100)
            np.savez(folder.path / PREDICTIONS, correct=np.packbits(right), count=IMAGES)
            (folder.path / RECORD).write_text(sealed(cell.record), encoding="utf-8")
        (folder.path / SPEC).write_text(cell.spec.model_dump_json(indent=2), encoding="utf-8")
    return len(cells)


def spent(times: list[float]) -> float:
    """Return the processor's seconds since the last call, and remember now."""
    times.append(time.process_time())
    return times[-1] - times[-2]


def made(folder: Path) -> tuple[dict[str, float], float]:
    """Make a board of a store in every format and return the seconds of each part, and the peak memory in MB."""
    gc.collect()
    times = [time.process_time()]
    cells = read_cells(RunStore(folder).runs())
    parts = {"read": spent(times)}
    board = build(cells, BASELINES, claims=(), answers=read_answers)
    parts["build"] = spent(times)
    for name in FORMATS:
        write(board, folder / "board", [name])
        parts[name] = spent(times)
    return parts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def measure(sheet: Sheet, records: int) -> float:
    """Add the lines of a board of that many records, and return its time per record.

    In processor time: what else the machine does is no part of it. Each in a process of its own, so that none finds
    what the one before it has kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        count = stored(made_up(records), Path(folder))
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            times = range(ROUNDS if records < SIZES[-1] else 1)
            rounds, peaks = zip(*(pool.apply(made, (Path(folder),)) for _ in times), strict=True)
    subject = f"{count:,} records"
    for name in rounds[0]:
        sheet.add(name, [parts[name] for parts in rounds], subject=subject, unit="s")
    sums = [sum(parts[name] for name in ("read", "build", "md", "json")) for parts in rounds]
    whole = sheet.add("read, build, md and json", sums, subject=subject, unit="s", at_most=SECONDS(records)).measured
    sheet.add("peak memory", peaks, subject=subject, unit="MB", at_most=MEGABYTES(records))
    return whole / count


def main() -> None:
    sizes = sorted(int(word) for word in sys.argv[1:]) or SIZES
    warm = build(made_up(1000), BASELINES, claims=())  # what is imported or kept is not measured
    for to_text in FORMATS.values():
        to_text(warm)
    about = (
        f"Boards of {METHODS} methods and {SEEDS} seeds with the answers to {IMAGES:,} test images, in every format."
    )
    with Sheet("board", "Building a board", about) as sheet:
        times = {size: measure(sheet, size) for size in sizes}
        for less, more in pairwise(times):
            subject = f"{more:,} against {less:,} records"
            most = GROWTH if less >= SIZES[1] else None  # of fewer, what every board costs is a part
            sheet.add("time per record", times[more] / times[less], subject=subject, at_most=most)


if __name__ == "__main__":
    main()
