"""``kdbench run-one``: what a worker process does; every engine starts this same command."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from kdbench.cli.arguments import (
    WhereType,
    apply,
    cache_options,
    data_option,
    devices_option,
    devices_per_run_option,
    events_option,
    teachers_option,
    threads_option,
)
from kdbench.cli.main import State
from kdbench.cli.workplaces import cache_place, workplace
from kdbench.storage.places import Where


@click.command("run-one")
@apply(
    click.option("--store", required=True, type=WhereType(), help="Folder or URL of the runs."),
    click.option("--run", "run_ids", required=True, multiple=True, metavar="ID", help="Run id (repeatable)."),
    teachers_option,
    data_option,
    devices_option,
    devices_per_run_option,
    threads_option,
    cache_options,
    events_option,
)
@click.pass_obj
def run_one_command(
    state: State, /, store: Where, run_ids: tuple[str, ...], teachers: Where, data: Path, device: str,
    threads: int | None, devices_per_run: int, events: bool, **caching: Any,
) -> None:  # fmt: skip
    """Train planned runs by id, together; exit 0 if their records are written, 65 if one is not ok, 75 if stopped.

    With several devices per run, this process starts one more for each of them.
    """
    from kdbench.execution.events import of_record
    from kdbench.execution.jobs import FAILED
    from kdbench.execution.members import leads, one_voice, started
    from kdbench.execution.torchrun import launch
    from kdbench.execution.worker import EventLog, StopFlag, emit
    from kdbench.store import RunStore
    from kdbench.training.runs import run_cohort

    if devices_per_run > 1 and not started():
        raise SystemExit(launch(sys.argv[1:], devices_per_run))
    flag = StopFlag()
    # The process that started this one passes signals on; what it leaves behind when it is killed hears of none.
    flag.install(signal.SIGKILL if devices_per_run > 1 else signal.SIGTERM)
    if events:
        logging.getLogger("kdbench").addHandler(EventLog(logging.WARNING) if leads() else logging.NullHandler())
    send, kept = emit if events else None, cache_place(teachers, **caching)
    with one_voice():
        place = workplace(state, teachers, data, device, threads, send, flag, kept, devices_per_run)
        records = run_cohort(run_ids, RunStore(store), place)
        place.machine.team.leave()
    for record in records:
        if events:
            emit(of_record(record))
        else:
            click.echo(f"{record.run_id}: {record.status} {record.accuracy.last if record.accuracy else record.reason}")
    if leads():
        _check_all_begun(run_ids, records)
    if any(record.status != "ok" for record in records):
        raise SystemExit(FAILED)


def inline_worker(settings: Any, send: Callable[[Any], None], state: State) -> Callable[[Any], None]:
    """Return what does a job in this process."""
    from kdbench.cli.teacher import train_by_name
    from kdbench.execution.events import of_record
    from kdbench.store import RunStore
    from kdbench.training.runs import run_cohort

    where = (settings.teachers, settings.data, settings.devices[0], settings.threads)
    place = cache(lambda: workplace(state, *where, send, cache=settings.cache))  # when the first job is done here

    def work(job: Any) -> None:
        if job.run_ids:
            for record in (records := run_cohort(job.run_ids, RunStore(settings.store), place())):
                send(of_record(record))
            _check_all_begun(job.run_ids, records)
        else:
            train_by_name(job.recipe, place(), send)

    return work


def _check_all_begun(run_ids: Sequence[str], records: Sequence[Any]) -> None:
    """Raise Interrupted, whose exit code is 75, if some of a worker's runs were cancelled before it began."""
    from kdbench.training.runs import cancelled

    done = {record.run_id for record in records}
    if left := [run_id for run_id in run_ids if run_id not in done]:
        raise cancelled(left)
