"""``kdbench run``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.arguments import apply, carrying_options, cells_options
from kdbench.cli.main import State
from kdbench.cli.workers import Workers, room_for, workers_of

if TYPE_CHECKING:
    from kdbench.engine import Engine
    from kdbench.method import Options


@click.command("run")
@apply(cells_options, carrying_options)
@click.pass_obj
def run_command(state: State, /, dry_run: bool, measure: bool, **options: Any) -> None:
    """Train every method and seed of a pair, teachers first.

    A finished run is never run again and an interrupted one continues: start the same command again at any time.
    """
    from kdbench.cli.planning import asked_for, plan_for

    how, cells = split(options, state)
    asked = asked_for(state.registry(), **cells, elsewhere=how.elsewhere)
    plan = plan_for(asked, state.registry())
    if dry_run:
        rehearse(plan, asked, how, state, measure=measure)
        return
    failed = train(plan, asked, how, state, measure=measure)
    if failed:
        raise SystemExit(4)


@dataclass(frozen=True)
class How:
    """How the runs of a plan are carried out: the options as parsed, the engine and what is set of it."""

    threads: int | None
    jobs: int | None
    lanes: int | None
    memory: float | None
    timeout: float
    no_train_teachers: bool
    retry_failed: bool
    engine: Engine
    engine_options: Options

    @property
    def elsewhere(self) -> bool:
        """Whether workers run on other machines."""
        return self.engine.where == "cluster"

    def workers(self, asked: Any) -> Workers:
        """Return the workers on the devices that the command asks for."""
        how = (self.threads, self.jobs, self.lanes, self.memory)
        return workers_of(asked.device, *how, self.engine, per_run=asked.devices_per_run)


def split(options: dict[str, Any], state: State) -> tuple[How, dict[str, Any]]:
    """Return how to run apart from what to run.

    Raises:
        ConfigError: If there is no such executor, it is not installed, or has no such options.
    """
    engine = state.registry().executors[options.pop("executor")]
    engine.check_installed()
    chosen = {"engine": engine, "engine_options": engine.options(options.pop("executor_option"))}
    how = {name: options.pop(name) for name in How.__dataclass_fields__ if name not in chosen}
    return How(**how, **chosen), options


def rehearse(plan: Any, asked: Any, how: How, state: State, *, measure: bool) -> None:
    """Print what :func:`train` would do.

    Raises:
        ConfigError: If it would end for lack of a teacher.
    """
    from kdbench.cli.needing import print_needs
    from kdbench.cli.plan import print_plan

    teachers = not how.no_train_teachers
    workers, again = how.workers(asked), how.retry_failed
    print_plan(plan, asked, state.registry(), workers, measure=measure, retry_failed=again, train_teachers=teachers)
    if how.elsewhere:
        print_needs(plan, asked, how, state.registry())


def train(plan: Any, asked: Any, how: How, state: State, *, measure: bool) -> bool:
    """Carry out a plan and say what came of it; return whether a run failed for outside reasons."""
    from kdbench.cli.expecting import expect
    from kdbench.cli.needing import Needing
    from kdbench.cli.notes import print_lanes, print_notes
    from kdbench.cli.progress import Reporter
    from kdbench.cli.run_one import inline_worker
    from kdbench.execution.driver import Order, carry_out
    from kdbench.execution.seam import Opening
    from kdbench.store import RunStore

    workers = how.workers(asked)
    room = room_for(workers, plan, state.registry())
    RunStore(asked.out).check_writable()
    _fetch_weights(plan, asked, state)
    settings = _settings(asked, workers, state)
    classes = {name: info.student.classes for name, info in plan.infos.items()}
    order = Order(
        plan.runs, asked.anchor, classes, settings, room.cohorts, workers.jobs + how.engine.waiting(how.engine_options),
        not how.no_train_teachers, how.retry_failed, how.elsewhere, state.registry().guests,
    )  # fmt: skip
    print_notes(plan)
    print_lanes(plan, asked, room)
    left = expect(plan, asked, workers, room, state.registry(), measure=measure, retry_failed=how.retry_failed)
    with _stops_as_interrupt(), Reporter(plan.runs, left) as reporter:
        opening = Opening(
            settings, reporter.see, how.engine_options, workers.jobs, 60 * how.timeout,
            Needing(plan, workers, room, state.registry()), inline_worker(settings, reporter.see, state),
        )  # fmt: skip
        with contextlib.closing(how.engine.open(opening)) as executor:
            records = carry_out(order, executor)
    return _failures_of(records, asked)


def _settings(asked: Any, workers: Workers, state: State) -> Any:
    from kdbench.cli.workplaces import cache_place
    from kdbench.execution.jobs import Settings

    return Settings(
        store=asked.out,
        teachers=asked.teachers,
        data=asked.data,
        devices=workers.places,
        threads=workers.threads,
        without=state.without,
        cache=cache_place(asked.teachers, asked.cache, asked.teacher_cache, asked.cache_size),
        devices_per_run=asked.devices_per_run,
    )


def _failures_of(records: Sequence[Any], asked: Any) -> bool:
    """Say what came of the runs; return whether one failed for outside reasons."""
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
    for pair in {spec.pair for spec in plan.runs if not store.folder(spec.run_id).has(RECORD)}:
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
