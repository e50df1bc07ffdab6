"""How the runs of a store stand, read from their folders, whoever fills them: nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Literal

from kdbench.errors import StoreError
from kdbench.execution.remaining import TimeLeft
from kdbench.records import Record, Status
from kdbench.spec import RunSpec
from kdbench.storage.heartbeat import Heartbeat
from kdbench.storage.lease import Holder, holder_of, is_free
from kdbench.store import RunFolder
from kdbench.training.runtime import RunTime, calculated

State = Literal["ok", "diverged", "failed", "damaged", "running", "silent", "cancelled", "waiting"]
STATES: tuple[State, ...] = ("ok", "diverged", "failed", "damaged", "running", "silent", "cancelled", "waiting")
_ENDS: dict[Status, State] = {"ok": "ok", "diverged": "diverged", "infra_failed": "failed", "skipped": "failed"}
UNFINISHED = {"running", "silent", "waiting"}
_PARTS = 10_000  # as finely a run's progress is told to the time left
_WHOLE = "run"


@dataclass(frozen=True)
class Standing:
    """One run.

    Args:
        spec: What was planned.
        state: ``silent``: its owner is gone, or has not beaten for long; ``damaged``: its record cannot be read.
        reason: Why, where it is not plain.
        record: Its result, if it has one.
        beat: The last beat of whoever is at it.
        age: Seconds since then, by the clocks of both machines.
        stopping: Whether it was asked to save and stop.
        conflicts: Names of the files with other results.
    """

    spec: RunSpec
    state: State
    reason: str = ""
    record: Record | None = None
    beat: Heartbeat | None = None
    age: float | None = None
    stopping: bool = False
    conflicts: tuple[str, ...] = ()


def standings(runs: Iterable[tuple[RunFolder, RunSpec]]) -> list[Standing]:
    """Return how each of some runs stands.

    Args:
        runs: Folders with their specs, as a store lists them.

    Raises:
        StoreError: If the store cannot be reached.
    """
    return [_standing(folder, spec) for folder, spec in runs]


def counts(runs: Sequence[Standing]) -> dict[State, int]:
    """Return how many runs are in each state that occurs, in a fixed order."""
    found = Counter(run.state for run in runs)
    return {state: found[state] for state in STATES if found[state]}


def _standing(folder: RunFolder, spec: RunSpec) -> Standing:
    conflicts = tuple(path.name for path in folder.conflicts())
    try:
        record = folder.peek()
    except StoreError as error:
        return Standing(spec, "damaged", str(error))
    if record is not None:
        return Standing(spec, _ENDS[record.status], record.reason, record, conflicts=conflicts)
    holder, stopping = holder_of(folder.shelf), folder.cancelled
    if holder is None:
        return Standing(spec, "cancelled" if stopping else "waiting")
    age = holder.beat.age() if holder.beat else None
    silence = _silence(folder, holder, age)
    return Standing(spec, "silent" if silence else "running", silence, None, holder.beat, age, stopping)


def _silence(folder: RunFolder, holder: Holder, age: float | None) -> str:
    """Return why nobody seems to be at a run that is claimed; empty if somebody is."""
    if holder.owner is not None and holder.owner.is_gone:
        return "its process is gone"
    if is_free(folder.shelf, holder, barred=False) or (age is not None and age > holder.limit):
        return f"no sign of life for {holder.limit:g} s" if age is None else f"no sign of life for {age:.0f} s"
    return ""


def time_left(runs: Sequence[Standing], now: datetime | None = None) -> float | None:
    """Return the seconds until all runs are done, if things go on as they have since the oldest running start.

    Args:
        runs: All runs of a store.
        now: The time, UTC.

    Returns:
        None while no run has got anywhere.
    """
    now = now or datetime.now(UTC)
    running = {run.spec.run_id: run.beat for run in runs if run.state == "running" and run.beat is not None}
    if not any(beat.progress.done for beat in running.values()):
        return None
    began = min(datetime.fromisoformat(beat.started_at) for beat in running.values())
    times = {run.spec.run_id: found for run in runs if (found := _last_attempt(run)) is not None}
    ended = [run for run in runs if run.spec.run_id in times and times[run.spec.run_id][1] > began]
    open_ = [run for run in runs if run.state in UNFINISHED]
    moments = iter([began.timestamp()])
    left = TimeLeft(_expected([*ended, *open_], runs), None, clock=lambda: next(moments, now.timestamp()))
    for run in ended:
        _reached(left, run.spec.run_id, _done_before(times[run.spec.run_id], began), 1.0)
    for run_id, beat in running.items():
        _reached(left, run_id, beat.share_at_start or 0.0, beat.progress.done)
    return left.seconds


def _reached(left: TimeLeft, run_id: str, before: float, done: float) -> None:
    for share in (before, done):
        whole, within = divmod(share * _PARTS, 1)
        left.reached(run_id, _WHOLE, int(whole), _PARTS, within)


def _last_attempt(run: Standing) -> tuple[datetime, datetime] | None:
    """Return when the last attempt of a finished run began and ended; None of others, or where no times are written."""
    if run.record is None:
        return None
    start = run.record.attempts[-1].started_at if run.record.attempts else run.record.started_at
    try:
        first, last = datetime.fromisoformat(start), datetime.fromisoformat(run.record.ended_at)
    except ValueError:
        return None
    return None if first.tzinfo is None or last.tzinfo is None else (first, last)


def _done_before(attempt: tuple[datetime, datetime], began: datetime) -> float:
    """Return the share of an attempt that was over before a moment."""
    first, last = attempt
    return max(0.0, (began - first).total_seconds()) / max(1e-9, (last - first).total_seconds())


def _expected(wanted: Sequence[Standing], known: Sequence[Standing]) -> dict[str, RunTime]:
    """Return the time of runs, from those of finished runs of the same method and pair, or of all; else all alike."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in known:
        if run.record is not None and run.record.cost is not None:
            found.setdefault((run.spec.pair, run.spec.row), []).append(run.record.cost.train_seconds)
    usual = fmean(seconds for each in found.values() for seconds in each) if found else 1.0
    times = {run.spec.run_id: fmean(found.get((run.spec.pair, run.spec.row), [usual])) for run in wanted}
    return {run_id: calculated(seconds, [(_WHOLE, _PARTS)]) for run_id, seconds in times.items()}
