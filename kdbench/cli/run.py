"""``kdbench run``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import click

from kdbench.cli.arguments import apply, available_threads, cells_options, measure_option, threads_option
from kdbench.cli.main import State


@click.command("run")
@apply(
    cells_options,
    threads_option,
    click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Workers at a time."),
    click.option("--lanes", type=click.IntRange(1), default=8, show_default=True, help="Runs per worker at a time."),
    click.option("--executor", type=click.Choice(["local", "inline"]), default="local", show_default=True),
    click.option("--no-train-teachers", is_flag=True, help="Fail if a teacher is missing."),
    click.option("--dry-run", is_flag=True, help="Only show the plan."),
    measure_option,
    click.option("--retry-failed", is_flag=True, help="Run again what failed for outside reasons."),
)
@click.pass_obj
def run_command(
    state: State,
    /,
    threads: int | None,
    jobs: int,
    lanes: int,
    executor: str,
    no_train_teachers: bool,
    dry_run: bool,
    measure: bool,
    retry_failed: bool,
    **cells: Any,
) -> None:
    """Train every method and seed of a pair, teachers first.

    A finished run is never run again and an interrupted one continues: start the same command again at any time.
    """
    from kdbench.cli.notes import print_notes
    from kdbench.cli.plan import print_plan
    from kdbench.cli.planning import Asked, plan_for
    from kdbench.cli.progress import Reporter
    from kdbench.execution.driver import Order, carry_out
    from kdbench.execution.jobs import Settings

    asked, threads = Asked(**cells), threads or max(1, available_threads() // jobs)
    plan = plan_for(asked, state.registry())
    if dry_run:
        print_plan(plan, asked, state.registry(), threads, measure=measure)
        return
    _fetch_weights(plan, asked, state)
    settings = Settings(
        store=asked.out,
        teachers=asked.teachers,
        data=asked.data,
        device=asked.device,
        threads=threads,
        without=state.without,
    )
    classes = {name: info.student.classes for name, info in plan.infos.items()}
    order = Order(plan.runs, asked.anchor, classes, settings, jobs, lanes, not no_train_teachers, retry_failed)
    print_notes(plan)
    with _sigterm_as_interrupt(), Reporter(plan.runs) as reporter:
        records = carry_out(order, _engine(executor, settings, reporter, state))
    failed = [record for record in records if record.status == "infra_failed"]
    diverged = [record for record in records if record.status == "diverged"]
    good = len(records) - len(failed) - len(diverged)
    click.echo(
        f"{good} ok, {len(diverged)} diverged, {len(failed)} failed; kdbench leaderboard {asked.out} --out board"
    )
    for record in failed:
        click.echo(f"failed {record.run_id}: {record.reason}", err=True)
    if failed:
        raise SystemExit(4)


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
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let a scheduler's SIGTERM do what Ctrl-C does: workers save, and the command can be started again."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _engine(name: str, settings: Any, reporter: Any, state: State) -> Any:
    if name == "inline":
        from kdbench.cli.run_one import inline_worker
        from kdbench.execution.inline import InlineExecutor

        return InlineExecutor(inline_worker(settings, reporter.see, state))
    from kdbench.execution.local import LocalExecutor

    return LocalExecutor(settings, reporter.see)
