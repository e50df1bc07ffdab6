"""The driver: todo = plan - store; hand out jobs, re-read the store, until nothing is left. It knows no engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kdbench.artefacts import TeacherStore
from kdbench.errors import ConfigError, KdbenchError, RunError
from kdbench.execution.jobs import FAILED, STOPPED, Job, Settings, cohort_jobs, teacher_job
from kdbench.execution.local import Ended, Handle
from kdbench.files import set_aside
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.store import RECORD, RunStore
from kdbench.training.teachers import Recipe, recipes_of

MAX_ATTEMPTS = 3  # of a job whose worker died without a word; runs continue from their checkpoints


class Executor(Protocol):
    """An engine that runs jobs."""

    def submit(self, job: Job) -> Handle | None:
        """Start a job."""
        ...

    @property
    def running(self) -> int:
        """Number of jobs under way."""
        ...

    def wait(self) -> Ended:
        """Wait for the next job to end."""
        ...

    def cancel(self) -> None:
        """Ask all jobs to save and stop."""
        ...


@dataclass(frozen=True)
class Order:
    """What the user wants done with a plan.

    Args:
        specs: The planned runs.
        anchor: Anchor as the user named it.
        settings: Where and how.
        jobs: Workers at a time.
        lanes: Runs per worker.
        train_teachers: Whether missing teachers are trained.
        retry_failed: Whether runs that failed for outside reasons are tried again.
    """

    specs: tuple[RunSpec, ...]
    anchor: str
    settings: Settings
    jobs: int = 1
    lanes: int = 8
    train_teachers: bool = True
    retry_failed: bool = False


def carry_out(order: Order, engine: Executor) -> list[Record]:
    """Do what a plan still lacks and return the records of all its runs, in plan order.

    Raises:
        ConfigError: If something is wrong that no retry mends.
        RunError: If a worker died repeatedly, or a teacher could not be trained.
        KdbenchError: With exit code 75 if the user stopped it; everything is saved.
    """
    store = RunStore(order.settings.store)
    store.check_writable()
    store.register(order.specs)
    if order.retry_failed:
        _forget_failed(order.specs, store)
    if todo := _unfinished(order.specs, store):
        missing = missing_teachers(todo, TeacherStore(order.settings.teachers))
        if missing and not order.train_teachers:
            raise ConfigError(
                f"teachers missing: {', '.join(recipe.name for recipe in missing)}; leave out --no-train-teachers, or "
                f"make them with kdbench teacher train"
            )
        _run_all([teacher_job(recipe, order.anchor) for recipe in missing], order.jobs, engine)
        _run_all(cohort_jobs(todo, order.settings.store, order.lanes), order.jobs, engine)
    records = [store.folder(spec.run_id).record() for spec in order.specs]
    for spec, record in zip(order.specs, records, strict=True):
        if record is None:
            raise RunError(f"run {spec.run_id}: its worker ended without a record; start the same command again")
    return [record for record in records if record is not None]


def missing_teachers(specs: Sequence[RunSpec], store: TeacherStore) -> list[Recipe]:
    """Return the recipes of teachers that runs need and the store lacks."""
    return [recipe for recipe in recipes_of(specs) if not store.exists(recipe.dataset, recipe.name)]


def _unfinished(specs: Sequence[RunSpec], store: RunStore) -> list[RunSpec]:
    return [spec for spec in specs if store.folder(spec.run_id).record() is None]


def _forget_failed(specs: Sequence[RunSpec], store: RunStore) -> None:
    """Set the records of failed runs aside; a diverged run is a result and stays."""
    for spec in specs:
        folder = store.folder(spec.run_id)
        record = folder.record()
        if record is not None and record.status == "infra_failed":
            set_aside(folder.path / RECORD)


def _run_all(jobs: Sequence[Job], at_a_time: int, engine: Executor) -> None:
    waiting = deque((job, 1) for job in jobs)
    attempts: dict[str, int] = {}
    problems: list[KdbenchError] = []
    try:
        while waiting or engine.running:
            while waiting and engine.running < at_a_time and not problems:
                job, attempt = waiting.popleft()
                attempts[job.name + str(job.run_ids)] = attempt
                engine.submit(job)
            if not engine.running:
                break
            ended = engine.wait()
            attempt = attempts[ended.job.name + str(ended.job.run_ids)]
            if ended.exit_code in {0, FAILED}:
                continue
            if _worth_another_try(ended, attempt):
                time.sleep(0.5 * attempt)
                waiting.append((ended.job, attempt + 1))
            else:
                problems.append(_problem(ended, attempt))
    except KeyboardInterrupt:
        engine.cancel()
        while engine.running:
            engine.wait()
        raise
    if problems:
        raise problems[0]


def _worth_another_try(ended: Ended, attempt: int) -> bool:
    """A worker that was killed, crashed, or met another one at the same run may do better next time."""
    by_signal = ended.exit_code < 0 or ended.exit_code == STOPPED
    return by_signal and attempt < MAX_ATTEMPTS


def _problem(ended: Ended, attempt: int) -> KdbenchError:
    message = ended.error or f"worker ended with exit code {ended.exit_code}"
    if ended.exit_code < 0:
        message = f"{ended.job.name}: worker killed by signal {-ended.exit_code} in {attempt} attempts; {message}"
    error = RunError(message)
    error.exit_code = ended.exit_code if ended.exit_code in {2, 3, 4, 73, STOPPED} else 4
    return error
