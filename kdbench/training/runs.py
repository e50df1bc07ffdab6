"""Running planned runs of a store: claim, train, record. A finished run is never run again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from kdbench.errors import ConfigError, KdbenchError
from kdbench.files import set_aside, write_atomic
from kdbench.records import Attempt, Environment, Record
from kdbench.spec import RunSpec
from kdbench.store import RECORD, SPEC, RunFolder, RunStore
from kdbench.training.cohort import Trained, Workplace, train_cohort
from kdbench.training.results import finish, identity_of

ATTEMPTS = "attempts.json"


def run_cohort(run_ids: Sequence[str], store: RunStore, workplace: Workplace) -> list[Record]:
    """Train the unfinished ones of the given runs together and return the records of all.

    Raises:
        RunBusy: If another process is at one of them.
        Interrupted: If asked to stop; the runs are saved.
        ConfigError: If dataset, teachers or checkpoint do not fit.
    """
    folders = [store.folder(run_id) for run_id in run_ids]
    if unplanned := [folder.path for folder in folders if not (folder.path / SPEC).is_file()]:
        raise ConfigError(f"{unplanned[0]}: no such run in the store; kdbench run plans runs before it trains them")
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(folder.claimed())
        records = {folder.path: record for folder in folders if (record := folder.record())}
        todo = [folder for folder in folders if folder.path not in records]
        if todo:
            specs = [folder.spec() for folder in todo]
            for record, folder in zip(_train(specs, todo, workplace), todo, strict=True):
                records[folder.path] = record
    return [records[folder.path] for folder in folders]


def _train(specs: Sequence[RunSpec], folders: Sequence[RunFolder], workplace: Workplace) -> list[Record]:
    attempts = {folder.path: _begin(folder) for folder in folders}
    methods = workplace.registry.methods
    hashes = [spec.config_sha256 for spec in specs]
    try:
        lanes = train_cohort(specs, folders, workplace, lambda spec: methods[spec.method])
    except KdbenchError as error:
        for folder in folders:
            _end(folder, attempts[folder.path], f"{type(error).__name__}: {error}")
        raise
    records = []
    for trained, planned in zip(lanes, hashes, strict=True):
        _verify(trained, planned)
        starts = attempts[trained.folder.path]
        record = finish(trained, workplace.machine, workplace.teachers, starts, now())
        (trained.folder.path / ATTEMPTS).unlink(missing_ok=True)
        workplace.registry.tell("kdbench_run_finished", record=record)
        records.append(record)
    return records


def _verify(trained: Trained, planned: str) -> None:
    """Check that the configuration is still the planned one, in memory and on disk."""
    spec, folder = trained.lane.spec, trained.folder
    for where, found in (("in memory", spec.config_sha256), (f"in {folder.path / SPEC}", folder.spec().config_sha256)):
        if found != planned:
            raise KdbenchError(
                f"run {spec.run_id}: its configuration changed during the run ({where}: {found[:12]}, planned "
                f"{planned[:12]}); nothing is recorded. Find out what changed it, and run it into another --out"
            )


def _begin(folder: RunFolder) -> tuple[Attempt, ...]:
    """Note the start of an attempt on disk, so that even a killed one is in the record."""
    attempts = (*_earlier(folder), Attempt(started_at=now(), ended_at="", outcome="running"))
    _write(folder, attempts)
    return attempts


def _earlier(folder: RunFolder) -> tuple[Attempt, ...]:
    """Return the attempts noted so far; one without an end was killed."""
    path = folder.path / ATTEMPTS
    earlier: list[Attempt] = []
    if path.exists():
        with contextlib.suppress(ValueError):  # half-written by nobody we know: the history is a courtesy
            earlier = [Attempt.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8"))]
    return tuple(a if a.ended_at else a.model_copy(update={"ended_at": now(), "outcome": "killed"}) for a in earlier)


def _end(folder: RunFolder, attempts: tuple[Attempt, ...], outcome: str) -> None:
    closed = attempts[-1].model_copy(update={"ended_at": now(), "outcome": outcome})
    _write(folder, (*attempts[:-1], closed))


def _write(folder: RunFolder, attempts: Sequence[Attempt]) -> None:
    text = json.dumps([attempt.model_dump(mode="json") for attempt in attempts], indent=2)
    write_atomic(folder.path / ATTEMPTS, text + "\n")


def record_dead(folder: RunFolder, classes: int, environment: Environment, reason: str) -> Record:
    """Record a run whose worker died without a word; its checkpoints stay for ``--retry-failed``.

    Args:
        folder: The run's folder.
        classes: Classes of its dataset.
        environment: Where it ran.
        reason: How it ended.

    Raises:
        RunBusy: If another process is at it after all.
    """
    with folder.claimed():
        spec, attempts = folder.spec(), _earlier(folder)
        record = Record(
            **identity_of(spec), classes=classes, status="infra_failed", reason=reason, environment=environment,
            started_at=attempts[0].started_at if attempts else now(), ended_at=now(), attempts=attempts,
        )  # fmt: skip
        folder.write_record(record)
        (folder.path / ATTEMPTS).unlink(missing_ok=True)
    return record


def forget_failure(folder: RunFolder) -> None:
    """Set the record of a failed run aside so that it is tried again; its attempts are carried over."""
    with folder.claimed():
        record = folder.record()
        if record is not None and record.status == "infra_failed":
            _write(folder, record.attempts)
            set_aside(folder.path / RECORD, "failed")


def now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
