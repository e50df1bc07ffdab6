"""How long a command takes: its runs in cohorts, its cohorts on workers."""

from __future__ import annotations

import heapq
import subprocess
import sys
import time
from collections.abc import Sequence

from kdbench.execution.grouping import Cohort
from kdbench.training.forecast import Duration, Forecast
from kdbench.training.runtime import together

# What a worker does before its job: it loads plugins, and an optimizer's first step half of torch.
WORKER = """
import torch
import kdbench.training.runs
from kdbench.registry import load
load()
weight = torch.nn.Parameter(torch.zeros(1))
weight.sum().backward()
torch.optim.SGD([weight], lr=0.1).step()
"""


def start_seconds() -> float:
    """Return how long a worker process takes to start, from one that does nothing else."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", WORKER], check=True, capture_output=True)
    return time.perf_counter() - started


def wall_time(cohorts: Sequence[Cohort], found: Forecast, jobs: int, start: float) -> tuple[Duration, Duration]:
    """Return the time of training the missing teachers, and that of the runs after it.

    Args:
        cohorts: Runs to do, those that a worker trains together; in the order in which they begin.
        found: Their times.
        jobs: Workers at a time.
        start: Seconds a worker takes to start.
    """
    teachers = [start + recipe.alone for recipe in found.recipes.values()]
    times = [[found.runs[spec.pair, spec.row] for spec in cohort] for cohort in cohorts]
    lengths = [start + together(runs) for runs in times]
    return (
        Duration(makespan(teachers, jobs), all(recipe.measured for recipe in found.recipes.values())),
        Duration(makespan(lengths, jobs), all(run.measured for runs in times for run in runs)),
    )


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Return when the last of some jobs ends, each begun by the first worker that is free."""
    ends = [0.0] * workers
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)
