"""``kdbench plan``: what run would do, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from kdbench.cli.arguments import apply, available_threads, cells_options, measure_option, threads_option
from kdbench.cli.main import State

MOST_OPTIONS = 12  # that a cell shows in full


@click.command("plan")
@apply(cells_options, threads_option, measure_option)
@click.pass_obj
def plan_command(state: State, /, threads: int | None, measure: bool, **cells: Any) -> None:
    """Show what run would do: cells, skipped cells with reasons, missing teachers, estimated time and memory.

    Times come from a few steps of each network on this machine, within a minute; ~ marks what was calculated from
    operations instead.
    """
    from kdbench.cli.planning import asked_for, plan_for

    asked = asked_for(state.registry(), **cells)
    plan = plan_for(asked, state.registry())
    print_plan(plan, asked, state.registry(), threads or available_threads(), measure=measure)


def print_plan(plan: Any, asked: Any, registry: Any, threads: int, *, measure: bool) -> None:
    """Print a plan."""
    from tabulate import tabulate

    from kdbench.artefacts import TeacherStore
    from kdbench.cli.notes import print_notes
    from kdbench.execution.driver import missing_teachers
    from kdbench.memory import estimate
    from kdbench.store import RunStore
    from kdbench.training.environment import set_up
    from kdbench.training.forecast import forecast, measurer

    store = RunStore(asked.out)
    machine = set_up(asked.device, threads)
    todo = [spec for spec in plan.runs if store.folder(spec.run_id).peek() is None]
    missing = missing_teachers(todo, TeacherStore(asked.teachers))
    found = forecast(plan, missing, registry, machine, measurer(plan, machine) if measure and todo else None)
    headers = ("pair", "dataset", "method", "options", "seeds", "state", "time/run", "memory")
    click.echo(tabulate(_rows(plan, store, found, registry), headers=headers, disable_numparse=True))
    print_notes(plan)
    for recipe in missing:
        time = f", {found.recipes[recipe.name]}" if found.recipes else ""
        click.echo(f"teacher missing: {recipe.name} for {recipe.dataset.label} (trained first{time})")
    cost = estimate(plan, todo, registry, found.base)
    click.echo(
        f"{len(plan.runs)} runs, {len(todo)} to do: {cost.images:,} student images, {cost.petaflops:.3g} PFLOP of "
        f"training, at most {_size(cost.memory_bytes)} per run"
    )
    if found.runs:
        click.echo(_total(todo, found))
    _print_cache(plan, asked, machine.device.type)


def _print_cache(plan: Any, asked: Any, device: str) -> None:
    from kdbench.cli.workplaces import cache_place
    from kdbench.training.teacher_cache.outlook import outlooks

    place = cache_place(asked.teachers, asked.cache, asked.teacher_cache, asked.cache_size)
    for line in ["teacher cache: off"] if place is None else outlooks(plan, place, device):
        click.echo(line)


def _rows(plan: Any, store: Any, found: Any, registry: Any) -> list[tuple[str, ...]]:
    cells: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for spec in plan.runs:
        record = store.folder(spec.run_id).peek()
        state = record.status if record else "to do"
        cells.setdefault((spec.pair, spec.dataset.label, spec.row), []).append((spec.seed, state))
    options = {(spec.pair, spec.row): _options(spec, registry) for spec in plan.runs}
    return [
        (pair, dataset, method, options[pair, method], _seeds(seeds), _states(seeds),
         str(found.runs.get((pair, method), "-")), _size(found.memory[pair, method]))
        for (pair, dataset, method), seeds in cells.items()
    ]  # fmt: skip


def _total(todo: Any, found: Any) -> str:
    """Return the line of the total time; each run bears its teachers' passes alone there."""
    from kdbench.training.forecast import Duration

    runs = sum((found.runs[spec.pair, spec.row] for spec in todo), Duration(0))
    taught = sum(found.recipes.values(), Duration(0))
    device, threads = found.machine.device, found.machine.threads
    where = f"{device}, {threads} thread{'s' if threads > 1 else ''}"
    teachers = f" + {taught} for missing teachers" if found.recipes else ""
    return (
        f"time one after another ({where}): {runs} for runs{teachers}; less where runs of a seed share their "
        "teachers' passes"
    )


def _size(count: int) -> str:
    """Return bytes as people say them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


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
