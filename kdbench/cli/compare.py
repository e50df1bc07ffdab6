"""``kdbench compare``."""

from __future__ import annotations

import click

from kdbench.cli.arguments import WhereType
from kdbench.cli.stored import stored_runs
from kdbench.storage.places import Where


@click.command("compare")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.argument("runs", nargs=-1, type=WhereType())
@click.option("--pair", metavar="PAIR", help="Only this pair.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(first: str, second: str, runs: tuple[Where, ...], pair: str | None, as_json: bool) -> None:
    """Compare methods A and B (or METHOD@VARIANT) by their runs under RUNS (default: runs).

    Differences are A minus B, paired by seed. One question, so p is not corrected; for many, see the leaderboard.
    """
    from kdbench.leaderboard import Cell, compare, duels_json, duels_text, read_answers, read_cells

    found = stored_runs(runs)
    cells = read_cells((run, spec) for run, spec in found if spec.row in {first, second})
    others = [Cell(spec) for _, spec in found if spec.row not in {first, second}]  # for messages: their names suffice
    duels = compare([*cells, *others], first, second, pair, read_answers)
    click.echo(duels_json(duels) if as_json else duels_text(duels), nl=False)
