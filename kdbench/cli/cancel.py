"""``kdbench cancel``."""

from __future__ import annotations

import click

from kdbench.cli.arguments import WhereType
from kdbench.cli.stored import stored_runs
from kdbench.storage.places import Where


@click.command("cancel")
@click.argument("runs", type=WhereType())
@click.argument("run_ids", nargs=-1, metavar="[RUN]...")
def cancel_command(runs: Where, run_ids: tuple[str, ...]) -> None:
    """Ask the runs RUN of the store RUNS (default: all that are unfinished) to save and stop.

    Workers see it at their next heartbeat, on whatever machine and engine. What is cancelled is begun again when the
    command that made it is started again.
    """
    from kdbench.errors import ConfigError, nearest
    from kdbench.execution.status import UNFINISHED, standings
    from kdbench.store import RunStore

    found = stored_runs([runs])
    known = {spec.run_id for _, spec in found}
    if missing := [run_id for run_id in run_ids if run_id not in known]:
        raise ConfigError(
            f"{runs}: has no run '{missing[0]}'.{nearest(missing[0], known)} All: kdbench status {runs} --json"
        )
    wanted = [(folder, spec) for folder, spec in found if not run_ids or spec.run_id in run_ids]
    asked = [
        (folder, run) for (folder, _), run in zip(wanted, standings(wanted), strict=True) if run.state in UNFINISHED
    ]
    store = RunStore(runs)
    for folder, _ in asked:
        store.at(folder.path.relative_to(store.root).as_posix()).cancel()
    running = sum(run.state == "running" for _, run in asked)
    click.echo(f"asked to stop: {running} running, {len(asked) - running} waiting; kdbench status {runs}")
