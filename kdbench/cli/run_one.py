"""``kdbench run-one``: what a worker process does; every engine starts this same command."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kdbench.cli.arguments import (
    apply,
    cache_options,
    data_option,
    device_option,
    events_option,
    teachers_option,
    threads_option,
)
from kdbench.cli.main import State
from kdbench.cli.workplaces import cache_place, workplace


@click.command("run-one")
@apply(
    click.option("--store", required=True, type=click.Path(path_type=Path), help="Folder of the runs."),
    click.option("--run", "run_ids", required=True, multiple=True, metavar="ID", help="Run id (repeatable)."),
    teachers_option,
    data_option,
    device_option,
    threads_option,
    cache_options,
    events_option,
)
@click.pass_obj
def run_one_command(
    state: State, /, store: Path, run_ids: tuple[str, ...], teachers: Path, data: Path, device: str,
    threads: int | None, events: bool, **cache: Any,
) -> None:  # fmt: skip
    """Train planned runs by id, together; exit 0 if their records are written, 65 if one is not ok, 75 if stopped."""
    from kdbench.execution.events import of_record
    from kdbench.execution.jobs import FAILED
    from kdbench.execution.worker import EventLog, StopFlag, emit
    from kdbench.store import RunStore
    from kdbench.training.runs import run_cohort

    flag = StopFlag()
    flag.install()
    if events:
        logging.getLogger("kdbench").addHandler(EventLog(logging.WARNING))
    kept = cache_place(teachers, **cache)
    place = workplace(state, teachers, data, device, threads, emit if events else None, flag, kept)
    records = run_cohort(run_ids, RunStore(store), place)
    for record in records:
        if events:
            emit(of_record(record))
        else:
            click.echo(f"{record.run_id}: {record.status} {record.accuracy.last if record.accuracy else record.reason}")
    if any(record.status != "ok" for record in records):
        raise SystemExit(FAILED)


def inline_worker(settings: Any, send: Callable[[Any], None], state: State) -> Callable[[Any], None]:
    """Return what does a job in this process."""
    from kdbench.cli.teacher import train_by_name
    from kdbench.execution.events import of_record
    from kdbench.store import RunStore
    from kdbench.training.runs import run_cohort

    where = (settings.teachers, settings.data, settings.devices[0], settings.threads)
    place = workplace(state, *where, send, cache=settings.cache)

    def work(job: Any) -> None:
        if job.run_ids:
            for record in run_cohort(job.run_ids, RunStore(settings.store), place):
                send(of_record(record))
        else:
            train_by_name(job.recipe, place, send)

    return work
