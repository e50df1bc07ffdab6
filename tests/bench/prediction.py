"""Predicted against real time: boards are planned, run, and compared; exit 1 if a whole board is off by more than 30 %.

    python tests/bench/prediction.py [--cpu] [BOARD ...]

Each run is predicted right before it is trained, in a worker of its own; then all runs go together as one cohort. With
``--cpu`` both are processor seconds of one process, for machines that do other work meanwhile.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report_lines import Sheet

from kdbench.artefacts import TeacherStore
from kdbench.cli.main import State
from kdbench.cli.run_one import inline_worker
from kdbench.execution.inline import InlineExecutor
from kdbench.execution.jobs import DONE, FAILED, Job, Settings, runs_job, teacher_job
from kdbench.execution.local import LocalExecutor
from kdbench.execution.outstanding import missing_teachers
from kdbench.execution.walltime import start_seconds
from kdbench.plan import Request, make_plan
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.environment import set_up
from kdbench.training.forecast import Cell, works_of
from kdbench.training.runtime import RunTime, together
from kdbench.training.trial import time_run

CPU = torch.device("cpu")
LIMIT = 30.0  # percent


@dataclass(frozen=True)
class Board:
    """A small board: digits, or as many random images in the shape of CIFAR."""

    pair: str
    methods: tuple[str, ...]
    anchor: str
    dataset: str | None = None


BOARDS = {
    "digits": Board("tiny", ("student", "vanilla_kd", "dkd", "crd", "reviewkd", "ft", "ab", "sskd"), "crd_short"),
    "two_teachers": Board("tiny_two", ("student", "vanilla_kd", "asib"), "fair_baseline_short"),
    "res20_res8": Board(
        "res20_res8", ("student", "vanilla_kd", "dkd", "crd", "reviewkd", "ft", "sskd"), "crd_smoke", "npz"
    ),
}


def random_npz(path: Path, train: int = 2000, test: int = 1000, classes: int = 100) -> str:
    """Write random images as a dataset and return its name."""
    draws = np.random.default_rng(0)
    arrays = {}
    for name, size in (("train", train), ("test", test)):
        arrays[f"{name}_images"] = draws.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        arrays[f"{name}_labels"] = np.arange(size) % classes
    np.savez(path, **arrays)
    return f"npz:{path}"


class Bench:
    """One board in a folder of its own."""

    def __init__(self, board: Board, folder: Path, *, cpu: bool) -> None:
        self.folder, self.state, self.anchor = folder, State(), board.anchor
        registry = self.state.registry()
        dataset = random_npz(folder / "random.npz") if board.dataset else None
        self.plan = make_plan(Request(board.methods, (board.pair,), (0,), board.anchor, dataset), registry)
        self.recipes = missing_teachers(self.plan.runs, TeacherStore(folder / "teachers"))
        self.works = works_of(self.plan, self.recipes, registry)
        self.start = 0.0 if cpu else start_seconds()
        self.cpu = cpu

    def predicted(self, key: Cell) -> RunTime:
        """Return the expected time of a run."""
        return time_run(self.works[key], CPU)

    def real(self, job: Job, store: str) -> float:
        """Do a job in a worker and return what it took."""
        settings = Settings(self.folder / store, self.folder / "teachers", self.folder / "data", ("cpu",), 1)
        inline = inline_worker(settings, lambda _event: None, self.state)
        engine = InlineExecutor(inline) if self.cpu else LocalExecutor(settings, lambda _event: None)
        RunStore(settings.store).register(self.plan.runs)
        started = time.perf_counter()
        engine.submit(job)
        ended = engine.wait()
        took = time.perf_counter() - started
        assert ended is not None
        if ended.exit_code not in {DONE, FAILED}:
            raise SystemExit(f"{job.name}: {ended.error}")
        return took

    def compare(self, sheet: Sheet, subject: str) -> None:
        """Add how far off the predicted times are, and whether those of the whole board are near enough."""
        told: list[tuple[float, float]] = []
        for recipe in self.recipes:
            expected = self.start + self.predicted(("", recipe.name)).alone
            told.append((expected, self.real(teacher_job(recipe, self.anchor), "apart")))
            line(sheet, f"teacher {recipe.backbone}", subject, *told[-1])
        times = []
        for spec in self.plan.runs:
            times.append(self.predicted((spec.pair, spec.row)))
            told.append((self.start + times[-1].alone, self.real(self._job([spec], "apart"), "apart")))
            line(sheet, spec.method, subject, *told[-1])
        all_of = self.start + together(times), self.real(self._job(self.plan.runs, "together"), "together")
        line(sheet, "all, one by one", subject, *map(sum, zip(*told, strict=True)), most=LIMIT)
        line(sheet, "all in one cohort", subject, *all_of, most=LIMIT)

    def _job(self, specs: Sequence[RunSpec], store: str) -> Job:
        return runs_job([spec.run_id for spec in specs], self.folder / store)


def line(sheet: Sheet, what: str, subject: str, predicted: float, real: float, most: float | None = None) -> None:
    """Add one comparison."""
    print(f"{subject}, {what}: {predicted:.2f} s predicted, {real:.2f} s real")
    sheet.add(f"{what}: off by", 100 * abs(predicted / real - 1), subject=subject, unit="%", at_most=most)


def main() -> None:
    """Compare the boards of the command line, or all."""
    cpu = "--cpu" in sys.argv
    if cpu:
        time.perf_counter = time.process_time
    set_up("cpu", 1)
    about = f"Runs are predicted and then trained, with 1 thread, in {'processor' if cpu else 'wall'} time."
    with Sheet("prediction", "Predicted time", about) as sheet:
        for name in [word for word in sys.argv[1:] if word in BOARDS] or list(BOARDS):
            with tempfile.TemporaryDirectory() as folder:
                Bench(BOARDS[name], Path(folder), cpu=cpu).compare(sheet, name)


if __name__ == "__main__":
    main()
