"""``kdbench run``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from kdbench.cli.arguments import apply, carrying_options, cells_options
from kdbench.cli.main import State
from kdbench.cli.workers import Workers, room_for, workers_of


@click.command("run")
@apply(cells_options, carrying_options)
@click.pass_obj
def run_command(state: State, /, dry_run: bool, measure: bool, **options: Any) -> None:
    """Train every method and seed of a pair, teachers first.

    A finished run is never run again and an interrupted one continues: start the same command again at any time.
    """
    from kdbench.cli.plan import print_plan
    from kdbench.cli.planning import asked_for, plan_for

    how, cells = split(options)
    asked = asked_for(state.registry(), **cells)
    plan = plan_for(asked, state.registry())
    if dry_run:
        print_plan(plan, asked, state.registry(), how.workers(asked), measure=measure)
        return
    failed = train(plan, asked, how, state, measure=measure)
    if failed:
        raise SystemExit(4)


@dataclass(frozen=True)
class How:
    """How the runs of a plan are carried out, as parsed."""

    threads: int | None
    jobs: int | None
    lanes: int | None
    memory: float | None
    executor: str
    timeout: float
    no_train_teachers: bool
    retry_failed: bool

    def workers(self, asked: Any) -> Workers:
        """Return the workers on the devices that the command asks for."""
        inline = self.executor == "inline"
        return workers_of(asked.device, self.threads, self.jobs, self.lanes, self.memory, inline=inline)


def split(options: dict[str, Any]) -> tuple[How, dict[str, Any]]:
    """Return how to run apart from what to run."""
    how = {name: options[name] for name in How.__dataclass_fields__}
    return How(**how), {name: value for name, value in options.items() if name not in how}


def train(plan: Any, asked: Any, how: How, state: State, *, measure: bool) -> bool:
    """Carry out a plan and say what came of it; return whether a run failed for outside reasons."""
    from kdbench.cli.expecting import expect
    from kdbench.cli.notes import print_lanes, print_notes
    from kdbench.cli.progress import Reporter
    from kdbench.cli.workplaces import cache_place
    from kdbench.execution.driver import Order, carry_out
    from kdbench.execution.jobs import Settings

    workers = how.workers(asked)
    room = room_for(workers, plan, state.registry())
    _fetch_weights(plan, asked, state)
    settings = Settings(
        store=asked.out,
        teachers=asked.teachers,
        data=asked.data,
        devices=tuple(map(str, workers.devices)),
        threads=workers.threads,
        without=state.without,
        cache=cache_place(asked.teachers, asked.cache, asked.teacher_cache, asked.cache_size),
    )
    classes = {name: info.student.classes for name, info in plan.infos.items()}
    order = Order(
        plan.runs, asked.anchor, classes, settings, room.cohorts, workers.jobs, not how.no_train_teachers,
        how.retry_failed,
    )  # fmt: skip
    print_notes(plan)
    print_lanes(plan, asked, room)
    left = expect(plan, asked, workers, room, state.registry(), measure=measure, retry_failed=how.retry_failed)
    with _stops_as_interrupt(), Reporter(plan.runs, left) as reporter:
        records = carry_out(order, _engine(how, settings, reporter, state))
    failed = [record for record in records if record.status == "infra_failed"]
    diverged = [record for record in records if record.status == "diverged"]
    good = len(records) - len(failed) - len(diverged)
    click.echo(
        f"{good} ok, {len(diverged)} diverged, {len(failed)} failed; kdbench leaderboard {asked.out} --out board"
    )
    for record in failed:
        click.echo(f"failed {record.run_id}: {record.reason}", err=True)
    return bool(failed)


def _fetch_weights(plan: Any, asked: Any, state: State) -> None:
    """Bring the published weights that students of unfinished runs start from, before anything is trained."""
    from kdbench.store import RECORD, RunStore
    from kdbench.training.networks import pretrained_build

    store, backbones = RunStore(asked.out), state.registry().backbones
    # Whether there is a record, not what it says: a damaged one is the worker's to set aside.
    for pair in {spec.pair for spec in plan.runs if not (store.folder(spec.run_id).path / RECORD).exists()}:
        info = plan.infos[pair]
        if (backbone := backbones[info.student.name]).pretrained:
            pretrained_build(backbone)(info.student.classes, info.image)


@contextlib.contextmanager
def _stops_as_interrupt() -> Iterator[None]:
    """Let a scheduler's signals do what Ctrl-C does: workers save, and the command can be started again."""
    from kdbench.execution.worker import STOP_SIGNALS

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [number for number in STOP_SIGNALS if number != signal.SIGINT]  # Python does the same for that one
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _engine(how: How, settings: Any, reporter: Any, state: State) -> Any:
    if how.executor == "inline":
        from kdbench.cli.run_one import inline_worker
        from kdbench.execution.inline import InlineExecutor

        return InlineExecutor(inline_worker(settings, reporter.see, state))
    from kdbench.execution.local import LocalExecutor

    return LocalExecutor(settings, reporter.see, patience=60 * how.timeout)
