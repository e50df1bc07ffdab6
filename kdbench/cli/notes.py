"""What a plan says besides its cells: those that are skipped, and what methods want the user to know."""

from __future__ import annotations

from typing import Any

import click


def print_notes(plan: Any) -> None:
    """Print why cells are skipped, and each method's cautions once per cell."""
    for skipped in plan.skipped:
        click.echo(f"skipped {skipped.method} on {skipped.pair}: {skipped.reason}")
    for (pair, method), passes in plan.passes.items():
        for caution in passes.cautions:
            click.echo(f"note {method} on {pair}: {caution}")


def print_lanes(plan: Any, asked: Any, room: Any) -> None:
    """Print how many of the runs to do a worker trains together, and what memory that takes."""
    from kdbench.store import RECORD, RunStore

    store = RunStore(asked.out)
    # Whether there is a record, not what it says: a damaged one is the driver's to set aside.
    if todo := [spec for spec in plan.runs if not store.folder(spec.run_id).has(RECORD)]:
        click.echo(room.described(todo))
