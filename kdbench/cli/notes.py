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
