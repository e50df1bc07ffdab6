"""``kdbench verify``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kdbench.cli.arguments import WhereType, apply, data_option, teachers_option
from kdbench.cli.main import State
from kdbench.local_path import LocalPath
from kdbench.storage.places import Where

OF_RERUN = ("out", "teachers", "data", "device", "threads")


@click.command("verify")
@click.argument("bundle", type=WhereType(), metavar="BOARD|RUN")
@apply(
    click.option("--rerun", is_flag=True, help="Train the run in the folder RUN again, and compare."),
    click.option("--out", type=LocalPath(), help="With --rerun: store that keeps the second training."),
    teachers_option,
    data_option,
    click.option("--device", help="With --rerun: cpu, cuda or cuda:N  [default: that of the run]."),
    click.option("--threads", type=click.IntRange(1), help="With --rerun: CPU threads  [default: those of the run]."),
)
@click.pass_obj
def verify_command(
    state: State, bundle: Where, rerun: bool, out: Path | None, teachers: Where, data: Path, device: str | None,
    threads: int | None,
) -> None:  # fmt: skip
    """Check a published board: tables, records, accuracies and hashes against each other.

    BOARD is what leaderboard --records has written. Nothing is changed; no dataset, teacher or plugin is needed.

    With --rerun, train one finished run again with the same teachers, data and threads: exit 0 if the bits are equal, 4
    if not, or if the second training fails.
    """
    from kdbench.storage.mirror import local_copy

    if rerun:
        _rerun(state, local_copy(bundle), out, teachers, data, device, threads)
        return
    said = click.get_current_context().get_parameter_source
    if given := [name for name in OF_RERUN if said(name) is ParameterSource.COMMANDLINE]:
        raise click.UsageError(f"--{given[0]} belongs to --rerun; add it, or leave --{given[0]} out")
    from kdbench.errors import ProblemList
    from kdbench.verification import verify

    if problems := _show(verify(local_copy(bundle))):
        raise ProblemList(problems)
    click.echo(f"{bundle}: its tables are what its records say")


def _rerun(
    state: State, path: Path, out: Path | None, teachers: Where, data: Path, device: str | None, threads: int | None
) -> None:
    from kdbench.cli.workplaces import workplace
    from kdbench.errors import ConfigError, KdbenchError
    from kdbench.store import RunStore
    from kdbench.verification.rerun import open_run, rerun

    run = open_run(path)
    around = run.record.environment
    if around.world_size > 1:
        raise ConfigError(
            f"{path}: was trained on {around.world_size} devices together, and --rerun has one, which gives other "
            f"bits; repeat it with kdbench run --devices-per-run {around.world_size} and another --out"
        )
    place = workplace(state, teachers, data, device or around.device, threads or around.threads, None)
    with tempfile.TemporaryDirectory(prefix="kdbench-rerun-") as folder:
        store = RunStore(out or Path(folder))
        if store.folder(run.spec.run_id).path.exists():
            raise ConfigError(f"--out {out}: holds this run already; choose another folder")
        problems = _show(rerun(run, store, place))
    if problems:
        raise KdbenchError("\n".join(problems))
    click.echo(f"{path}: trained again, with equal bits")


def _show(checks: Iterable[Any]) -> list[str]:
    """Print a line for each check and return all problems."""
    from kdbench.errors import printable

    problems: list[str] = []
    for check in checks:
        click.echo(printable(check.line))
        problems += check.problems
    return problems
