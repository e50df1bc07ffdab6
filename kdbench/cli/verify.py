"""``kdbench verify``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
def verify_command(bundle: Path) -> None:
    """Check a published board, BUNDLE: tables, records, accuracies and hashes against each other.

    BUNDLE is what leaderboard --records has written. Nothing is changed; no dataset, teacher or plugin is needed.
    """
    from kdbench.errors import ProblemList, printable
    from kdbench.verification import verify

    checks = verify(bundle)
    for check in checks:
        click.echo(printable(check.line))
    if problems := [problem for check in checks for problem in check.problems]:
        raise ProblemList(problems)
    click.echo(f"{bundle}: its tables are what its records say")
