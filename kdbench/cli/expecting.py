"""What a run of a plan is expected to take, found out before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from kdbench.cli.workers import Workers
from kdbench.execution.remaining import TimeLeft
from kdbench.training.runtime import RunTime

WORTH = 0.02  # share of the time of a command that measuring may take
LEAST = 1.0  # seconds of it, below which nothing is measured
NOMINAL_FLOPS = {"cpu": 2e10, "cuda": 2e12}  # per second, for the times of what was not measured


def expect(
    plan: Any, asked: Any, workers: Workers, room: Any, registry: Any, *, measure: bool, retry_failed: bool
) -> TimeLeft:
    """Return the time left of a command that is about to start, and say it where it was measured.

    Measuring takes at most a small share of the whole, so a command of a few minutes measures nothing: its time is
    known when some of it has passed.

    Args:
        plan: The plan.
        asked: The options of the command.
        workers: Who carries it out.
        room: Which runs they train together.
        registry: Loaded plugins.
        measure: Whether anything may be measured.
        retry_failed: Whether failed runs are to do, too.
    """
    from kdbench.artefacts import TeacherStore
    from kdbench.execution.outstanding import outstanding
    from kdbench.store import RunStore
    from kdbench.training.budget import nominal
    from kdbench.training.environment import set_up
    from kdbench.training.forecast import BUDGET, forecast, measurer, works_of

    left = outstanding(plan.runs, RunStore(asked.out), TeacherStore(asked.teachers), retry_failed=retry_failed)
    todo, recipes = left.runs, left.teachers
    if not todo:
        return TimeLeft({}, None)
    rest = replace(plan, runs=todo)
    rough = nominal(works_of(rest, recipes, registry), NOMINAL_FLOPS[workers.devices[0].type])
    times = by_run(todo, recipes, rough)
    budget = min(BUDGET, WORTH * sum(run.alone for run in times.values()) / workers.jobs)
    # What several devices take together is not measured, and what others take cannot be.
    if not measure or budget < LEAST or workers.where == "cluster" or workers.per_run > 1:
        return TimeLeft(times, None)
    machine = set_up(str(workers.devices[0]), workers.threads)
    found = forecast(rest, recipes, registry, machine, measurer(machine), budget)
    if not found.runs:
        return TimeLeft(times, None)
    return _measured(room.cohorts(todo), recipes, found, workers)


def by_run(todo: Sequence[Any], recipes: Sequence[Any], times: Mapping[Any, RunTime]) -> dict[str, RunTime]:
    """Return the time of each training by the id of its run, from those of cells."""
    taught = {recipe.spec().run_id: times["", recipe.name] for recipe in recipes}
    return taught | {spec.run_id: times[spec.pair, spec.row] for spec in todo}


def _measured(cohorts: Sequence[Any], recipes: Sequence[Any], found: Any, workers: Workers) -> TimeLeft:
    from kdbench.execution.walltime import start_seconds, wall_time

    taught, runs = wall_time(cohorts, found, workers.jobs, workers.start(start_seconds))
    click.echo(f"expected time on {found.machine.device} with {workers}: {taught + runs}")
    cells = {**found.runs, **{("", name): time for name, time in found.recipes.items()}}
    todo = [spec for cohort in cohorts for spec in cohort]
    return TimeLeft(by_run(todo, recipes, cells), (taught + runs).seconds)
