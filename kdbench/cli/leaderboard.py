"""``kdbench leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from kdbench.cli.arguments import WhereType, names, path_option
from kdbench.cli.main import State
from kdbench.cli.stored import stored_runs
from kdbench.storage.places import Where


@click.command("leaderboard")
@click.argument("runs", nargs=-1, type=WhereType())
@path_option("--out", "board", "Folder the tables are written to.")
@click.option(
    "--format",
    "formats",
    default="md,json,html",
    show_default=True,
    metavar="F[,F]",
    help="md, html (a page with plots), json, csv, latex.",
)
@click.option("--records", is_flag=True, help="Copy the records to OUT/runs, so that anyone can rebuild the tables.")
@click.pass_obj
def leaderboard_command(state: State, runs: tuple[Where, ...], out: Path, formats: str, records: bool) -> None:
    """Write tables and a page from the records under RUNS (default: runs) and print the Markdown table."""
    from kdbench.leaderboard import (
        CURVES,
        build,
        check_formats,
        publish,
        read_answers,
        read_cells,
        to_markdown,
        write,
        write_manifest,
    )
    from kdbench.leaderboard.publishing import is_published

    wanted = names(formats)
    check_formats(wanted)
    found = stored_runs(runs)
    baselines = sorted((m for m in state.registry().methods.values() if m.baseline), key=lambda m: m.uses_teacher)
    columns = [method.name for method in baselines]
    curves, copies = not set(wanted).isdisjoint(CURVES), []
    board = build(read_cells(found, curves=curves), columns, answers=read_answers)
    if records:  # the tables are then made from the copies, so that anyone gets the same bytes
        copies = publish([run for run, _ in found], out).runs()
        board = build(read_cells(copies, curves=curves), columns, answers=read_answers)
    paths = list(write(board, out, wanted))
    if records:
        published = [path for run, _ in copies for path in sorted(run.path.iterdir()) if is_published(path.name)]
        paths.append(write_manifest(out, [*paths, *published], columns))
    click.echo(to_markdown(board))
    for path in paths:
        click.echo(f"wrote {path}")
