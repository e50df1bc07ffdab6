"""``kdbench plan``: what run would do, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from kdbench.cli.arguments import apply, cells_options, measure_option, workers_options
from kdbench.cli.main import State
from kdbench.cli.workers import OPTIONS, Workers, machine_of, room_for, workers_of

MOST_OPTIONS = 12  # that a cell shows in full


@click.command("plan")
@apply(cells_options, workers_options, measure_option)
@click.pass_obj
def plan_command(state: State, /, measure: bool, **options: Any) -> None:
    """Show what run would do: cells, skipped cells with reasons, missing teachers, estimated time and memory.

    Times come from a few steps of each run on this machine, within a minute; ~ marks what was calculated instead.
    """
    from kdbench.cli.planning import asked_for, plan_for

    workers = {name: options.pop(name) for name in OPTIONS}
    asked = asked_for(state.registry(), **options)
    plan = plan_for(asked, state.registry())
    there = workers_of(asked.device, **workers, per_run=asked.devices_per_run)
    print_plan(plan, asked, state.registry(), there, measure=measure)


def print_plan(
    plan: Any, asked: Any, registry: Any, workers: Workers, *,
    measure: bool, retry_failed: bool = False, train_teachers: bool = True,
) -> None:  # fmt: skip
    """Print what a command would do.

    Raises:
        ConfigError: If it would end for lack of a teacher.
    """
    from tabulate import tabulate

    from kdbench.artefacts import TeacherStore
    from kdbench.cli.notes import print_lanes, print_notes
    from kdbench.execution.outstanding import outstanding, refuse_missing
    from kdbench.memory import estimate, spoken_size
    from kdbench.store import RunStore
    from kdbench.training.forecast import forecast, measurer, said

    left = outstanding(plan.runs, RunStore(asked.out), TeacherStore(asked.teachers), retry_failed=retry_failed)
    todo, missing = left.runs, left.teachers
    if not train_teachers:
        refuse_missing(missing)
    room = room_for(workers, plan, registry)
    here = workers.where != "cluster"
    machine = machine_of(workers)
    found = forecast(plan, missing, registry, machine, measurer(machine) if measure and todo and here else None)
    headers = ("pair", "dataset", "method", "options", "seeds", "state", "time/run", "memory")
    click.echo(tabulate(_rows(plan, left.states, found, registry), headers=headers, disable_numparse=True))
    if workers.per_run > 1:
        click.echo(f"each run has {workers.per_run} devices; times and memory are those of one")
    print_notes(plan)
    for recipe in missing:
        time = f", {said(found.recipes[recipe.name])}" if found.recipes else ""
        click.echo(f"teacher missing: {recipe.name} for {recipe.dataset.label} (trained first{time})")
    cost = estimate(plan, todo, registry, found.base)
    click.echo(
        f"{len(plan.runs)} runs, {len(todo)} to do: {cost.images:,} student images, {cost.petaflops:.3g} PFLOP of "
        f"training, at most {spoken_size(cost.memory_bytes)} per run"
    )
    print_lanes(plan, asked, room)
    if found.runs:
        click.echo(_total(room.cohorts(todo), found, workers))
    _print_cache(plan, asked, machine.device.type, used=workers.per_run == 1)


def _print_cache(plan: Any, asked: Any, device: str, *, used: bool) -> None:
    from kdbench.cli.workplaces import cache_place
    from kdbench.training.teacher_cache.outlook import outlooks

    place = cache_place(asked.teachers, asked.cache, asked.teacher_cache, asked.cache_size)
    for line in ["teacher cache: off"] if place is None or not used else outlooks(plan, place, device):
        click.echo(line)


def _rows(plan: Any, states: Any, found: Any, registry: Any) -> list[tuple[str, ...]]:
    from kdbench.memory import spoken_size
    from kdbench.training.forecast import said

    cells: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for spec in plan.runs:
        cells.setdefault((spec.pair, spec.dataset.label, spec.row), []).append((spec.seed, states[spec.run_id]))
    options = {(spec.pair, spec.row): _options(spec, registry) for spec in plan.runs}
    return [
        (pair, dataset, method, options[pair, method], _seeds(seeds), _states(seeds),
         said(found.runs[pair, method]) if found.runs else "-", spoken_size(found.memory[pair, method]))
        for (pair, dataset, method), seeds in cells.items()
    ]  # fmt: skip


def _total(cohorts: Any, found: Any, workers: Workers) -> str:
    """Return the line of the total time."""
    from kdbench.execution.walltime import start_seconds, wall_time

    taught, runs = wall_time(cohorts, found, workers.jobs, workers.start(start_seconds))
    teachers = f" = {taught} for missing teachers + {runs} for runs" if found.recipes else ""
    return f"time on {found.machine.device} with {workers}: {taught + runs}{teachers}"


def _options(spec: Any, registry: Any) -> str:
    """Return the options of a cell; of many, those that are not at their recommended values."""
    from kdbench.options import usual_options

    shown, others = spec.options, ""
    if len(shown) > MOST_OPTIONS:
        usual = usual_options(registry.methods[spec.method], spec.anchor, registry.pairs[spec.pair])
        shown = {name: value for name, value in shown.items() if usual.get(name) != value}
        others = f"{len(spec.options) - len(shown)} as recommended (kdbench show {spec.method})"
    texts = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()]
    return ", ".join([*texts, *([others] if others else [])])


def _seeds(entries: list[tuple[int, str]]) -> str:
    return ",".join(str(seed) for seed, _ in entries)


def _states(entries: list[tuple[int, str]]) -> str:
    states = [state for _, state in entries]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
