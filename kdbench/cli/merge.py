"""``kdbench merge``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from kdbench.local_path import LocalPath


@click.command("merge")
@click.argument("stores", nargs=-1, required=True, type=LocalPath())
@click.option("--out", required=True, type=LocalPath(), help="Store the runs are copied to.")
@click.option("--with-unfinished", is_flag=True, help="Copy unfinished runs, too, with their checkpoints.")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied.")
def merge_command(stores: tuple[Path, ...], out: Path, with_unfinished: bool, dry_run: bool) -> None:
    """Copy the runs of STORES, e.g. of several machines, into one store; equal runs once.

    Runs that contradict each other are refused, and nothing is copied then. Damaged and unfinished ones are named and
    left out.
    """
    from kdbench.errors import ProblemList
    from kdbench.merging import merge

    choice = merge(stores, out, with_unfinished=with_unfinished, dry_run=dry_run)
    for run_id, run in choice.copy.items():
        click.echo(f"{'would copy' if dry_run else 'copied'} {run_id} from {run.folder.path}")
    _say("has the same result as the one taken", choice.repeated)
    _say("failed, and gives way", choice.failed)
    _say("unfinished, left out", choice.unfinished)
    verb = "to copy" if dry_run else "copied"
    click.echo(f"{out}: {len(choice.copy)} {verb}, {len(choice.present)} there already, {len(choice.damaged)} damaged")
    if choice.damaged:
        raise ProblemList(f"{text}; left out: copy the run again from where it was made" for text in choice.damaged)


def _say(what: str, paths: Sequence[Path]) -> None:
    for path in paths:
        click.echo(f"{path}: {what}")
