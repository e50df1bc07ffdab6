"""``kdbench status``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.arguments import WhereType
from kdbench.cli.stored import stored_runs
from kdbench.storage.places import Where

if TYPE_CHECKING:
    from kdbench.execution.status import Standing

WATCH_SECONDS = 2.0
_SHOWN = ("damaged", "failed", "diverged", "silent", "running", "cancelled")  # of the others the number says enough


@click.command("status")
@click.argument("runs", nargs=-1, type=WhereType())
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until nothing is left to do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every run.")
def status_command(runs: tuple[Where, ...], watch: bool, as_json: bool) -> None:
    """Show what is done, running, waiting and failed under RUNS (default: runs), and how much time is left.

    It reads what is in the runs' folders, so it does not matter which machine or engine fills them.
    """
    from kdbench.execution.status import UNFINISHED, standings

    while True:
        found = standings(stored_runs(runs))
        text = _as_json(found) if as_json else _as_text(found)
        if watch:
            click.clear()  # does nothing where there is no terminal
        click.echo(text)
        if not watch or not any(run.state in UNFINISHED for run in found):
            return
        time.sleep(WATCH_SECONDS)


def _as_text(runs: list[Standing]) -> str:
    from kdbench.errors import printable
    from kdbench.execution.status import counts, time_left
    from kdbench.training.runtime import spoken

    lines = [f"{run.state:<9} {run.spec.run_id}{_more(run)}" for state in _SHOWN for run in runs if run.state == state]
    said = ", ".join(f"{count} {state}" for state, count in counts(runs).items())
    seconds = time_left(runs)
    left = "" if seconds is None else f"; {spoken(seconds)} left"
    return printable("\n".join([*lines, f"{len(runs)} runs: {said}{left}"]))


def _more(run: Standing) -> str:
    """Return where a run is, how far, and what is to be said of it."""
    parts = [run.reason] if run.reason else []
    if beat := run.beat:
        reached = beat.progress
        far = (
            f"{reached.phase} {reached.epoch + 1}/{reached.epochs} ({reached.done:.0%})"
            if reached.phase
            else "starting"
        )
        job = f" job {beat.owner.job}" if beat.owner.job else ""
        parts += [far, f"on {beat.owner.host} pid {beat.owner.pid}{job}", f"beat {run.age or 0:.0f} s ago"]
    if run.stopping:
        parts.append("asked to stop")
    if run.conflicts:
        parts.append(f"another result in {', '.join(run.conflicts)}")
    return f": {'; '.join(parts)}" if parts else ""


def _as_json(runs: list[Standing]) -> str:
    from kdbench.execution.status import counts, time_left

    tree = {
        "schema_version": 1,
        "runs": [_run(run) for run in runs],
        "counts": counts(runs),
        "seconds_left": time_left(runs),
    }
    return json.dumps(tree, indent=2)


def _run(run: Standing) -> dict[str, Any]:
    return {
        "run_id": run.spec.run_id,
        "state": run.state,
        "reason": run.reason,
        "accuracy": run.record.accuracy.last if run.record and run.record.accuracy else None,
        "stopping": run.stopping,
        "heartbeat": run.beat.model_dump(mode="json") if run.beat else None,
        "heartbeat_age": run.age,
        "conflicts": list(run.conflicts),
    }
