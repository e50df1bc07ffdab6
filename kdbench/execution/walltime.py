"""How long a command takes: its runs in cohorts, its cohorts on workers."""

from __future__ import annotations

import heapq
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kdbench.execution.jobs import cohort_jobs
from kdbench.spec import RunSpec
from kdbench.training.forecast import Duration, Forecast
from kdbench.training.runtime import together

WORKER = "import kdbench.registry, kdbench.training.runs"  # most of what a worker does before its job


def start_seconds() -> float:
    """Return how long a worker process takes to start, from one that does nothing else."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", WORKER], check=True, capture_output=True)
    return time.perf_counter() - started


def wall_time(
    todo: Sequence[RunSpec], found: Forecast, jobs: int, lanes: int, start: float
) -> tuple[Duration, Duration]:
    """Return the time of training the missing teachers, and that of the runs after it.

    Args:
        todo: Runs to do, in plan order.
        found: Their times.
        jobs: Workers at a time.
        lanes: Most runs that a worker trains together.
        start: Seconds a worker takes to start.
    """
    teachers = [start + recipe.alone for recipe in found.recipes.values()]
    times = {spec.run_id: found.runs[spec.pair, spec.row] for spec in todo}
    cohorts = [start + together([times[run_id] for run_id in job.run_ids]) for job in cohort_jobs(todo, Path(), lanes)]
    return (
        Duration(makespan(teachers, jobs), all(recipe.measured for recipe in found.recipes.values())),
        Duration(makespan(cohorts, jobs), all(run.measured for run in times.values())),
    )


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Return when the last of some jobs ends, each begun by the first worker that is free."""
    ends = [0.0] * workers
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)
