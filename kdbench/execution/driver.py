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
from kdbench.errors import KdbenchError, PluginError, RunError, StoreError
from kdbench.execution.grouping import Cohort
from kdbench.execution.held import left, parts, wait_for_others
from kdbench.execution.jobs import STOPPED, Ended, Job, Settings, runs_job, teacher_job
from kdbench.execution.outstanding import missing_teachers, refuse_missing
from kdbench.execution.seam import Executor
from kdbench.records import Record
from kdbench.spec import PluginRef, RunSpec
from kdbench.store import RunBusy, RunStore
from kdbench.training.environment import Machine
from kdbench.training.runs import forget_failure, record_dead, tidy
from kdbench.training.teachers import Recipe
from kdbench.training.team.exchange import PeerLost
from kdbench.training.team.members import Team

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of a job whose worker died without a word; runs continue from their checkpoints
MAX_STOPS = 20  # of a job whose worker was told to stop and had saved: on machines with other users, that is no fault
FULL = StoreError.exit_code  # what cannot be written or read: a disk of this machine, or of one of many
SHARED = {PluginError.exit_code, FULL}  # the other jobs would meet it, too
SPOKEN = {*SHARED, 2, 4}  # exit codes of a worker that said what is wrong
LOST = PeerLost.exit_code  # one of several devices: the fault may be of a machine or the network
SIGNALLED = 128  # exit codes from here on are what shells and containers make of a signal
HELD_SECONDS = 10.0  # how often runs are looked at that another command holds, while jobs are under way here


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
        elsewhere: Whether the workers are on several machines, each with a disk of its own.
        plugins: Every plugin that is loaded, for the records of runs whose workers died.
    """

    specs: tuple[RunSpec, ...]
    anchor: str
    classes: Mapping[str, int]
    settings: Settings
    cohorts: Callable[[Sequence[RunSpec]], Sequence[Cohort]]
    jobs: int = 1
    train_teachers: bool = True
    retry_failed: bool = False
    elsewhere: bool = False
    plugins: tuple[PluginRef, ...] = ()


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
        missing = missing_teachers(todo, teachers := TeacherStore(order.settings.teachers))
        _set_damaged_aside(missing, teachers)
        if not order.train_teachers:
            refuse_missing(missing)
        _run_all([teacher_job(recipe, order.anchor) for recipe in missing], order, engine)
        cohorts = [[spec.run_id for spec in cohort] for cohort in order.cohorts(todo)]
        _run_all([runs_job(run_ids, order.settings.store) for run_ids in cohorts], order, engine)
    records = {spec.run_id: store.folder(spec.run_id).result() for spec in order.specs}
    undone = [run_id for run_id, record in records.items() if record is None]
    if cancelled := [run_id for run_id in undone if store.folder(run_id).cancelled]:
        raise Cancelled(f"cancelled: {', '.join(cancelled)}; they were saved, and the same command goes on with them")
    if undone:
        raise RunError(f"run {undone[0]}: its worker ended without a record; start the same command again")
    return [record for record in records.values() if record is not None]


def _set_damaged_aside(missing: Sequence[Recipe], store: TeacherStore) -> None:
    """Make room for the teachers that are there, but damaged: their recipes make them again, to the same bits."""
    for recipe in missing:
        if aside := store.set_damaged_aside(recipe.dataset, recipe.name):
            names = ", ".join(path.name for path in aside)
            _log.warning("teacher '%s': damaged; set aside in %s: %s", recipe.name, aside[0].parent, names)


def _unfinished(specs: Sequence[RunSpec], store: RunStore) -> list[RunSpec]:
    return [spec for spec in specs if store.folder(spec.run_id).result() is None]


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
            ended = engine.wait(HELD_SECONDS if waiting and engine.running < order.jobs else None)
            if ended is None:
                continue
            tries = attempts[ended.job.arguments]
            if again := _again(ended, tries, order):
                if not waiting:  # or a fleet would stand still for each of its workers that stopped
                    time.sleep(tries.pause)
                waiting.extend((job, tries.after(ended.exit_code)) for job in again)
            elif not _done(ended.job, order.settings):
                problem = _problem(ended, tries.attempt)
                if ended.exit_code not in SPOKEN | {STOPPED} and len(ended.job.run_ids) == 1:
                    if not _record_dead(ended.job, str(problem), order):
                        waiting.append((ended.job, tries))
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


def _again(ended: Ended, tries: Tries, order: Order) -> list[Job]:
    """Return the jobs to start after one that did not do its work, none if that would not help.

    A worker that was stopped, killed, or met another one at the same run may do better next time; of many machines one
    may be full while the others are not. A worker that died may have been brought down by one of its runs, so each goes
    on in a worker of its own; so do runs that it complained of by name, and the others without them.
    """
    code, settings = ended.exit_code, order.settings
    outside = code < 0 or code >= SIGNALLED or code in {STOPPED, LOST} or (order.elsewhere and code == FULL)
    complaint = code in SPOKEN - SHARED  # the job gets smaller each time, and ends
    if _done(ended.job, settings) or (not complaint and tries.spent(code)) or (code in SHARED and not outside):
        return []
    undone = left(ended.job, settings)
    if len(undone) > 1 and code not in {STOPPED, FULL}:
        words = ended.error.replace(ended.job.name, "")  # with which engines begin what they say of the whole job
        apart = [run_id for run_id in undone if not complaint or run_id in words]
        together = [run_id for run_id in undone if run_id not in apart]
        if apart:
            return [runs_job(run_ids, settings.store) for run_ids in (together, *([one] for one in apart)) if run_ids]
    return [ended.job] if outside else []


def _record_dead(job: Job, reason: str, order: Order) -> bool:
    """Write the record of a run that brought down its worker: it has failed, and the board must show it.

    Returns:
        Whether it could be written; not while a process is at the run after all, such as a worker that lost its engine.
    """
    folder = RunStore(order.settings.store).folder(job.run_ids[0])
    spec = folder.spec()
    device = torch.device(order.settings.devices[0].partition(",")[0])
    machine = Machine(device, order.settings.threads, Team(size=order.settings.devices_per_run))
    environment = machine.describe(spec.anchor.step.precision)
    try:
        record_dead(folder, order.classes[spec.pair], environment, reason, order.plugins)
    except RunBusy:
        return False
    return True


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
