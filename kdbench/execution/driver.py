"""The driver: todo = plan - store; hand out jobs, re-read the store, until nothing is left. It knows no engine."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from kdbench.artefacts import TeacherStore
from kdbench.errors import ConfigError, KdbenchError, RunError
from kdbench.execution.grouping import Cohort
from kdbench.execution.held import left, parts, wait_for_others
from kdbench.execution.jobs import STOPPED, Ended, Job, Settings, runs_job, teacher_job
from kdbench.execution.seam import Executor
from kdbench.records import Record
from kdbench.spec import RunSpec
from kdbench.store import RunStore
from kdbench.training.environment import Machine
from kdbench.training.runs import forget_failure, record_dead, tidy
from kdbench.training.teachers import Recipe, recipes_of
from kdbench.training.team.members import Team

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of a job whose worker died without a word; runs continue from their checkpoints
MAX_STOPS = 20  # of a job whose worker was told to stop and had saved: on machines with other users, that is no fault
SHARED = {3, 73}  # a plugin's fault on loading, a full disk: the other jobs would meet it, too
SPOKEN = {*SHARED, 2, 4}  # exit codes of a worker that said what is wrong


@dataclass(frozen=True)
class Tries:
    """How often a job was started.

    Args:
        attempt: The number of this attempt, from 1; only a worker that died makes it larger.
        stops: How often its worker was stopped.
    """

    attempt: int = 1
    stops: int = 0

    def after(self, exit_code: int) -> Tries:
        """Return those of the next start."""
        return Tries(self.attempt, self.stops + 1) if exit_code == STOPPED else Tries(self.attempt + 1, self.stops)

    def spent(self, exit_code: int) -> bool:
        """Return whether there is to be no start after one that ended so."""
        return self.stops >= MAX_STOPS if exit_code == STOPPED else self.attempt >= MAX_ATTEMPTS

    @property
    def pause(self) -> float:
        """Seconds before the next one."""
        return 0.5 * min(self.attempt + self.stops, MAX_ATTEMPTS)


class Cancelled(KdbenchError):
    """Runs were stopped by kdbench cancel; everything else is done."""

    exit_code = STOPPED


@dataclass(frozen=True)
class Order:
    """What the user wants done with a plan.

    Args:
        specs: The planned runs.
        anchor: Anchor as the user named it.
        classes: Classes of each pair's dataset, by pair name.
        settings: Where and how.
        cohorts: Returns which runs each worker trains together.
        jobs: Jobs that the engine has at a time; those that wait in a queue of its own count, too.
        train_teachers: Whether missing teachers are trained.
        retry_failed: Whether runs that failed for outside reasons are tried again.
    """

    specs: tuple[RunSpec, ...]
    anchor: str
    classes: Mapping[str, int]
    settings: Settings
    cohorts: Callable[[Sequence[RunSpec]], Sequence[Cohort]]
    jobs: int = 1
    train_teachers: bool = True
    retry_failed: bool = False


def carry_out(order: Order, engine: Executor) -> list[Record]:
    """Do what a plan still lacks and return the records of all its runs, in plan order.

    Raises:
        ConfigError: If something is wrong that no retry mends.
        RunError: If a worker died repeatedly, or a teacher could not be trained.
        Cancelled: If runs were stopped by kdbench cancel, and all others are done.
        KdbenchError: With exit code 75 if the user stopped it; everything is saved.
    """
    store = RunStore(order.settings.store)
    store.check_writable()
    store.register(order.specs)
    for spec in order.specs:
        tidy(store.folder(spec.run_id))
    if order.retry_failed:
        for spec in order.specs:
            forget_failure(store.folder(spec.run_id))
    if todo := _unfinished(order.specs, store):
        store.renew(todo)
        for spec in todo:
            store.folder(spec.run_id).uncancel()
        _set_damaged_aside(todo, TeacherStore(order.settings.teachers))
        missing = missing_teachers(todo, TeacherStore(order.settings.teachers))
        if missing and not order.train_teachers:
            names = ", ".join(f"{recipe.name} for {recipe.dataset.label}" for recipe in missing)
            raise ConfigError(
                f"teachers missing: {names}; leave out --no-train-teachers, or make them with kdbench teacher train"
            )
        _run_all([teacher_job(recipe, order.anchor) for recipe in missing], order, engine)
        cohorts = [[spec.run_id for spec in cohort] for cohort in order.cohorts(todo)]
        _run_all([runs_job(run_ids, order.settings.store) for run_ids in cohorts], order, engine)
    records = [store.folder(spec.run_id).record() for spec in order.specs]
    if cancelled := [spec.run_id for spec in todo if store.folder(spec.run_id).cancelled]:
        raise Cancelled(f"cancelled: {', '.join(cancelled)}; they were saved, and the same command goes on with them")
    for spec, record in zip(order.specs, records, strict=True):
        if record is None:
            raise RunError(f"run {spec.run_id}: its worker ended without a record; start the same command again")
    return [record for record in records if record is not None]


def missing_teachers(specs: Sequence[RunSpec], store: TeacherStore) -> list[Recipe]:
    """Return the recipes of teachers that runs need and the store lacks.

    Raises:
        ConfigError: If the store has an artefact of that name from another recipe.
    """
    recipes = recipes_of(specs)
    for recipe in recipes:
        if store.exists(recipe.dataset, recipe.name):
            store.made_by(recipe.dataset, recipe.name, recipe.anchor.sha256)
    return [recipe for recipe in recipes if not store.exists(recipe.dataset, recipe.name)]


def _set_damaged_aside(specs: Sequence[RunSpec], store: TeacherStore) -> None:
    """Let damaged teachers count as missing: their recipes make them again, to the same bits."""
    for recipe in recipes_of(specs):
        if aside := store.set_damaged_aside(recipe.dataset, recipe.name):
            names = ", ".join(path.name for path in aside)
            _log.warning("teacher '%s': damaged; set aside in %s: %s", recipe.name, aside[0].parent, names)


def _unfinished(specs: Sequence[RunSpec], store: RunStore) -> list[RunSpec]:
    return [spec for spec in specs if store.folder(spec.run_id).record() is None]


def _run_all(jobs: Sequence[Job], order: Order, engine: Executor) -> None:
    """Do all jobs; one that fails does not keep the others from being done, unless what it met would stop them too."""
    waiting = deque((job, Tries()) for job in jobs)
    attempts: dict[tuple[str, ...], Tries] = {}
    problems: list[KdbenchError] = []
    try:
        while waiting or engine.running:
            _start(waiting, attempts, order, engine)
            if not engine.running:
                wait_for_others([job for job, _ in waiting], order.settings)
                continue
            ended = engine.wait()
            tries = attempts[ended.job.arguments]
            if again := _again(ended, tries, order.settings):
                if not waiting:  # or a fleet would stand still for each of its workers that stopped
                    time.sleep(tries.pause)
                waiting.extend((job, tries.after(ended.exit_code)) for job in again)
            elif not _done(ended.job, order.settings):
                problem = _problem(ended, tries.attempt)
                if ended.exit_code not in SPOKEN | {STOPPED} and len(ended.job.run_ids) == 1:
                    _record_dead(ended.job, str(problem), order)
                    continue
                problems.append(problem)
                if problems[-1].exit_code in SHARED:
                    waiting.clear()
    except KeyboardInterrupt:
        _stop(engine)
        raise
    if problems:
        raise _all_of(problems)


def _start(
    waiting: deque[tuple[Job, Tries]], attempts: dict[tuple[str, ...], Tries], order: Order, engine: Executor
) -> None:
    """Start as many jobs as there are workers for; what another process holds stays behind."""
    for _ in range(len(waiting)):
        if engine.running >= order.jobs:
            return
        job, tries = waiting.popleft()
        free, held = (job, None) if engine.knows(job) else parts(job, order.settings)
        if held is not None:
            waiting.append((held, tries))
        if free is not None:
            attempts[free.arguments] = tries
            engine.submit(free)


def _stop(engine: Executor) -> None:
    """Let all jobs save and stop; a second interrupt lets them stop without saving."""
    engine.cancel()
    try:
        while engine.running:
            engine.wait()
    except KeyboardInterrupt:
        engine.cancel()
        while engine.running:
            engine.wait()


def _done(job: Job, settings: Settings) -> bool:
    """Return what the store says of a job; exit codes are hints."""
    if job.recipe is not None:
        return TeacherStore(settings.teachers).exists(job.recipe.dataset, job.recipe.name)
    return not left(job, settings)


def _again(ended: Ended, tries: Tries, settings: Settings) -> list[Job]:
    """Return the jobs to start after one that did not do its work, none if that would not help.

    A worker that was stopped, killed, or met another one at the same run may do better next time. One that died may
    have been brought down by one of its runs: each goes on in a worker of its own.
    """
    if _done(ended.job, settings) or tries.spent(ended.exit_code) or ended.exit_code in SPOKEN:
        return []
    if ended.exit_code != STOPPED and len(undone := left(ended.job, settings)) > 1:
        return [runs_job([run_id], settings.store) for run_id in undone]
    return [ended.job] if ended.exit_code < 0 or ended.exit_code == STOPPED else []


def _record_dead(job: Job, reason: str, order: Order) -> None:
    """Write the record of a run that brought down its worker: it has failed, and the board must show it."""
    folder = RunStore(order.settings.store).folder(job.run_ids[0])
    spec = folder.spec()
    device = torch.device(order.settings.devices[0].partition(",")[0])
    machine = Machine(device, order.settings.threads, Team(size=order.settings.devices_per_run))
    record_dead(folder, order.classes[spec.pair], machine.describe(spec.anchor.step.precision), reason)


def _problem(ended: Ended, attempt: int) -> KdbenchError:
    """Return the error of a job that was not done: the worker's own words, or how it ended."""
    spoken = re.search(r"^kdbench: (.*)", ended.error, re.DOTALL | re.MULTILINE)
    if spoken and ended.exit_code in {*SPOKEN, STOPPED}:
        error = RunError(spoken[1])
        error.exit_code = ended.exit_code
        return error
    how = f"ended with exit code {ended.exit_code} and without a result"
    if ended.exit_code < 0:
        how = f"was killed by signal {-ended.exit_code} ({signal.strsignal(-ended.exit_code)})"
    words = f": {ended.error.splitlines()[-1]}" if ended.error else ""
    times = f" ({attempt} attempts)" if attempt > 1 else ""
    return RunError(
        f"{ended.job.name}: its worker {how}{times}{words}; everything else is kept. Repair what stopped it, and start "
        f"the same command again{' with --retry-failed' if ended.job.run_ids else ''}"
    )


def _all_of(problems: Sequence[KdbenchError]) -> KdbenchError:
    error = RunError("\n".join(dict.fromkeys(map(str, problems))))
    error.exit_code = problems[0].exit_code
    return error
