"""Running planned runs of a store: claim, train, record. A finished run is never run again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from kdbench.errors import FAULTS, ConfigError
from kdbench.records import Environment, Record
from kdbench.spec import PluginRef, RunSpec
from kdbench.storage.lease import LeaseLost
from kdbench.store import CHECKPOINTS, RECORD, SPEC, RunBusy, RunFolder, RunStore
from kdbench.training import attempts, retry
from kdbench.training.attempts import Attempts, now
from kdbench.training.checkpoint import CheckpointFolder
from kdbench.training.cohort import Trained, Workplace, train_cohort
from kdbench.training.lock import Lock
from kdbench.training.results import finish, identity_of, measure, outcome
from kdbench.training.safe_mode import AS_PLANNED, SAFE, Settings, applied
from kdbench.training.team.members import Fallen
from kdbench.training.trainer import Interrupted


@dataclass(frozen=True)
class Start:
    """One start of a run, locked and noted on disk.

    Args:
        spec: What is planned.
        folder: Where it is kept.
        lock: Its configuration at this start.
        attempts: All starts, this one last.
    """

    spec: RunSpec
    folder: RunFolder
    lock: Lock
    attempts: Attempts

    def ask_for_retry(self, reason: str, from_epoch: int = 0) -> None:
        """End this attempt so that the next start of the run is the safe retry, whichever process makes it."""
        self.lock.verify(self.spec, self.folder, "before its safe retry")
        attempts.end(self.folder, self.attempts, reason, from_epoch=from_epoch, retry_sha256=self.lock.sha256)
        logging.getLogger(__name__).warning("%s: %s; it is started once more in safe mode", self.spec.run_id, reason)


def run_cohort(run_ids: Sequence[str], store: RunStore, workplace: Workplace) -> list[Record]:
    """Train the unfinished ones of the given runs together and return the records of all that are not cancelled.

    A run that is to be tried again with safe settings goes alone, when the others have their records. One that was
    cancelled before it began is not begun, and the others are trained without it.

    The members of a team all call this with the same run. The leader claims and records it; to the others it tells what
    to train, and they return nothing.

    Raises:
        RunBusy: If another process is at one of them.
        Interrupted: If asked to stop; the runs are saved. Likewise if all were cancelled.
        LeaseLost: If another process has taken one of them over; nothing more is written.
        FreshProcess: If a safe retry cannot be made in this process.
        Fallen: If another member's part than the leader's failed.
        ConfigError: If dataset, teachers or checkpoint do not fit.
    """
    team = workplace.machine.team
    if not team.leads:
        _follow(store, workplace)
        return []
    folders = [store.folder(run_id) for run_id in run_ids]
    if unplanned := [folder.shelf.label for folder in folders if not folder.has(SPEC)]:
        raise ConfigError(f"{unplanned[0]}: no such run in the store; kdbench run plans runs before it trains them")
    with contextlib.ExitStack() as stack:
        wanted = _claimed(folders, stack, workplace.should_stop)
        records = {folder.path: record for folder in wanted if (record := folder.record())}
        todo = [folder for folder in wanted if folder.path not in records]
        if not todo:
            team.told(None)
        if first := [folder for folder in todo if not retry.settings_after(attempts.earlier(folder))]:
            records |= _train(first, workplace, AS_PLANNED)
        for folder in todo:
            if folder.path not in records:
                _check_followed(folder, first, workplace)
                retry.free_memory(workplace.machine.device)
                records |= _train([folder], workplace, SAFE)
    if not wanted:
        raise cancelled(run_ids)
    return [records[folder.path] for folder in folders if folder in wanted]


def cancelled(run_ids: Sequence[str]) -> Interrupted:
    """Return what says that runs were cancelled before they began."""
    return Interrupted(f"cancelled before they began: {', '.join(run_ids)}; the command that planned them begins them")


def _claimed(
    folders: Sequence[RunFolder], stack: contextlib.ExitStack, should_stop: Callable[[], bool]
) -> list[RunFolder]:
    """Claim folders for as long as a stack lasts; return them without those of cancelled runs, which are given back."""
    ordered = sorted(folders, key=lambda folder: folder.path)  # of two that want the same runs one gets them
    for folder in ordered[1:]:
        folder.look()  # else a cohort whose machine is gone would be waited for run by run
    wanted = []
    for folder in ordered:
        with contextlib.ExitStack() as claim:
            claim.enter_context(folder.claimed(should_stop))
            if folder.lease is None or not folder.lease.stopping or folder.has(RECORD):
                stack.enter_context(claim.pop_all())
                wanted.append(folder)
    return [folder for folder in folders if folder in wanted]


def _train(folders: Sequence[RunFolder], workplace: Workplace, settings: Settings) -> dict[Path, Record]:
    """Train runs and return the records of those that are done; the others have asked for their safe retry."""
    starts = [_begin(folder, settings) for folder in folders]
    methods = workplace.registry.methods
    workplace.machine.team.told((starts[0].spec.run_id, dict(settings)))
    with applied(settings):
        try:
            lanes = train_cohort(
                [start.spec for start in starts], folders, workplace, lambda spec: methods[spec.method], settings
            )
        except LeaseLost:
            raise  # another process writes to the run now
        except FAULTS as error:
            if not _retried_whole(starts, error, settings):
                raise
            return {}
        ended = zip(lanes, starts, strict=True)
        records = {start.folder.path: _end(trained, start, workplace) for trained, start in ended}
    for trained in lanes:
        if records[trained.folder.path] is None:
            _check_process(trained.lane.spec, trained.lane.failure)
    return {path: record for path, record in records.items() if record is not None}


def _follow(store: RunStore, workplace: Workplace) -> None:
    """Train a run with the leader, which alone claims and records it; it also says in what settings."""
    team = workplace.machine.team
    told: tuple[str, dict[str, JsonValue]] | None = team.told(None)
    if told is None:  # there is a record already
        return
    folder, settings = store.folder(told[0]), told[1]
    methods = workplace.registry.methods
    with applied(settings):
        (trained,) = train_cohort([folder.spec()], [folder], workplace, lambda spec: methods[spec.method], settings)
    if (failure := trained.lane.failure) is not None:
        raise Fallen(f"run {trained.lane.spec.run_id}: {team.blamed(failure)}")


def _check_followed(folder: RunFolder, before: Sequence[RunFolder], workplace: Workplace) -> None:
    if before and not workplace.machine.team.alone:
        raise retry.FreshProcess(
            f"{folder.path}: its safe retry needs all of its devices again, and they have left; the next start of the "
            "same command makes it"
        )


def _begin(folder: RunFolder, settings: Settings) -> Start:
    """Lock the run and note the start of an attempt on disk, so that even a killed one is in the record."""
    spec = folder.spec()
    lock = Lock.of(spec)
    if settings:
        retry.prepare(spec, folder, attempts.earlier(folder))
    start = Start(spec, folder, lock, attempts.begin(folder, settings))
    lock.verify(spec, folder, "before the run")
    return start


def _retried_whole(starts: Sequence[Start], error: BaseException, settings: Settings) -> bool:
    """Note how a training ended that left no lanes; return whether its only run is to be tried again here.

    Of several runs it is not known which one asked too much of the device: the driver starts each by itself.
    """
    words = f"{type(error).__name__}: {error}"
    if len(starts) == 1 and retry.allowed(starts[0].spec, settings) and retry.is_device_fault(error):
        starts[0].ask_for_retry(words)
        _check_process(starts[0].spec, error)
        return True
    for start in starts:
        attempts.end(start.folder, start.attempts, words)
    return False


def _check_process(spec: RunSpec, error: BaseException | None) -> None:
    if retry.needs_fresh_process(error):
        raise retry.FreshProcess(
            f"run {spec.run_id}: its device failed ({type(error).__name__}: {error}), which this process cannot mend; "
            "the next start of the same command makes its safe retry"
        ) from error


def _end(trained: Trained, start: Start, workplace: Workplace) -> Record | None:
    """Record the run; None if it is to be tried again instead."""
    lane, settings = trained.lane, trained.settings
    measured = None if retry.wanted(lane, settings) else measure(trained, workplace.machine, workplace.teachers)
    if retry.wanted(lane, settings):  # known before, or found out by the final evaluation
        start.ask_for_retry(outcome(lane)[1], trained.from_epoch)
        return None
    start.lock.verify(lane.spec, start.folder, "during the run")
    plugins = workplace.registry.guests
    record = finish(trained, measured, workplace.machine, start.attempts, now(), plugins)
    attempts.forget(start.folder)
    workplace.registry.tell("kdbench_run_finished", record=record)
    return record


def record_dead(
    folder: RunFolder, classes: int, environment: Environment, reason: str, plugins: tuple[PluginRef, ...] = ()
) -> Record:
    """Record a run whose worker died without a word; its checkpoints stay for ``--retry-failed``.

    Args:
        folder: The run's folder.
        classes: Classes of its dataset.
        environment: Where it ran, as planned.
        reason: How it ended.
        plugins: Every plugin that was loaded.

    Raises:
        RunBusy: If another process is at it after all.
    """
    with folder.claimed():
        spec, starts = folder.spec(), attempts.earlier(folder)
        if starts and (precision := starts[-1].settings.get("precision")):
            environment = environment.model_copy(update={"precision": precision})
        record = Record(
            **identity_of(spec), classes=classes, status="infra_failed", reason=retry.told(reason, starts),
            environment=environment, started_at=starts[0].started_at if starts else now(), ended_at=now(),
            attempts=starts, plugins_loaded=plugins,
        )  # fmt: skip
        record = folder.write_record(record)
        attempts.forget(folder)
    return record


def tidy(folder: RunFolder) -> None:
    """Remove what a writer left that was killed when its run was finished: lock, lease, checkpoints, attempts."""
    folder.tidy()
    if _has_leftovers(folder) and not folder.held():
        with contextlib.suppress(RunBusy), folder.claimed():
            if (record := folder.record()) is not None:
                attempts.forget(folder)  # the record has them
                if record.status != "infra_failed":  # a failed run may be tried again from its checkpoints
                    CheckpointFolder(folder.checkpoints).remove()


def _has_leftovers(folder: RunFolder) -> bool:
    """Return whether a run with a record has checkpoints or attempts; of one at a URL, the copy here does not tell."""
    if folder.mirror is None:
        return (folder.checkpoints.is_dir() or folder.has(attempts.ATTEMPTS)) and folder.has(RECORD)
    names = set(folder.shelf.names())
    if RECORD not in names or attempts.ATTEMPTS in names:
        return RECORD in names
    if CHECKPOINTS not in names or not any(name.endswith(".pt") for name in folder.shelf.at(CHECKPOINTS).names()):
        return False
    record = folder.result()  # of a failed run they stay, and are not brought here for nothing
    return record is not None and record.status != "infra_failed"


def forget_failure(folder: RunFolder) -> None:
    """Set the record of a failed run aside so that it is tried again; its attempts are carried over.

    A run that another process holds is being tried already.
    """
    if not folder.has(RECORD):
        return
    with contextlib.suppress(RunBusy), folder.claimed():
        record = folder.record()
        if record is not None and record.status == "infra_failed":
            attempts.write(folder, record.attempts)
            folder.set_aside(RECORD, "failed")
