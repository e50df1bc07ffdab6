"""``kdbench plan``: what run would do, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from kdbench.cli.arguments import cells_options
from kdbench.cli.main import State


@click.command("plan")
@cells_options
@click.pass_obj
def plan_command(state: State, /, **cells: Any) -> None:
    """Show what run would do: cells, skipped cells with reasons, missing teachers, estimated cost."""
    from kdbench.cli.planning import Asked, plan_for

    asked = Asked(**cells)
    print_plan(plan_for(asked, state.registry()), asked, state.registry())


def print_plan(plan: Any, asked: Any, registry: Any) -> None:
    """Print a plan."""
    from tabulate import tabulate

    from kdbench.artefacts import TeacherStore
    from kdbench.execution.driver import missing_teachers
    from kdbench.memory import estimate
    from kdbench.store import RunStore

    store = RunStore(asked.out)
    rows: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for spec in plan.runs:
        record = store.folder(spec.run_id).peek()
        state = record.status if record else "to do"
        rows.setdefault((spec.pair, spec.dataset.label, spec.method), []).append((spec.seed, state))
    options = {(spec.pair, spec.method): _options(spec) for spec in plan.runs}
    table = [
        (pair, dataset, method, options[pair, method], _seeds(seeds), _states(seeds))
        for (pair, dataset, method), seeds in rows.items()
    ]
    click.echo(tabulate(table, headers=("pair", "dataset", "method", "options", "seeds", "state")))
    for skipped in plan.skipped:
        click.echo(f"skipped {skipped.method} on {skipped.pair}: {skipped.reason}")
    todo = [spec for spec in plan.runs if store.folder(spec.run_id).peek() is None]
    for recipe in missing_teachers(todo, TeacherStore(asked.teachers)):
        click.echo(f"teacher missing: {recipe.name} for {recipe.dataset.label} (trained first)")
    cost = estimate(plan, todo, registry)
    click.echo(
        f"{len(plan.runs)} runs, {len(todo)} to do: {cost.images:,} student images, {cost.petaflops:.3g} PFLOP of "
        f"training, at most {cost.memory_bytes / 2**30:.1f} GiB per student"
    )


def _options(spec: Any) -> str:
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in spec.options.items())  # fmt: skip


def _seeds(entries: list[tuple[int, str]]) -> str:
    return ",".join(str(seed) for seed, _ in entries)


def _states(entries: list[tuple[int, str]]) -> str:
    states = [state for _, state in entries]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
