"""The reports of a run's epochs: readable, its own, and saying of the accuracies what the record says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from kdbench.epoch_table import epoch_table
from kdbench.leaderboard.publishing import FOLDER
from kdbench.records import Accuracy, EpochReport
from kdbench.store import EPOCH_TABLE, EPOCHS, RECORD
from kdbench.verification.bundle import Bundle, Run
from kdbench.verification.report import Check, counted

TAIL = 5  # evaluated epochs whose mean is accuracy.last5_mean
# The last epoch and the final evaluation look at the same network; other kernels may turn a few images all the same.
TURNED, TURNED_SHARE = 2, 0.0005
_RESTORE = "bring back the published file, or publish the board again"


def check_epochs(bundle: Bundle, runs: Sequence[Run], images: Mapping[str, int]) -> Check:
    """Return whether every run's epochs can be read and end where its record does.

    Args:
        bundle: The published board.
        runs: Its runs.
        images: Test images of the runs whose predictions can be read, by place.
    """
    problems: list[str] = []
    lines = 0
    for run in runs:
        path = run.path / EPOCHS
        scored = run.record is not None and run.record.accuracy is not None
        if f"{FOLDER}/{run.place}/{EPOCHS}" not in bundle.files:
            if scored:
                problems.append(f"{path}: missing; a run with an accuracy has its epochs; {_RESTORE}")
            continue
        try:
            reports = read_epochs(path)
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {_first(error)}; expected is one report of an epoch a line; {_RESTORE}")
            continue
        lines += len(reports)
        problems += _foreign(run, reports) or _inconsistent(run, reports, images.get(run.place))
        problems += _table(bundle, run, reports)
    return Check("epochs", f"{counted(lines, 'report')} of {counted(len(runs), 'run')}", problems)


def read_epochs(path: Path) -> list[EpochReport]:
    """Return the reports of a run.

    Raises:
        OSError, ValueError: If the file cannot be read, or a line is no report.
    """
    reports = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            reports.append(EpochReport.model_validate(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no report of an epoch ({_first(error)})") from error
    return reports


def _first(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _foreign(run: Run, reports: Sequence[EpochReport]) -> list[str]:
    others = {report.run_id for report in reports} - {run.spec.run_id}
    return [
        f"{run.path / EPOCHS}: has epochs of run {other}, expected are those of {run.spec.run_id} alone; {_RESTORE}"
        for other in sorted(others)[:1]
    ]


def _inconsistent(run: Run, reports: Sequence[EpochReport], images: int | None) -> list[str]:
    """Return where the reports contradict the accuracies of the record."""
    record = run.record
    if record is None or record.accuracy is None:
        return []
    found = list(_accuracies(run, reports, record.accuracy, images))
    if record.status == "ok":
        # The main phase alone is evaluated, its last epoch always.
        last = next((report for report in reversed(reports) if report.test_accuracy is not None), None)
        place = None if last is None else last.epoch if last.student_epoch is None else last.student_epoch
        done, epochs = 0 if place is None else place + 1, run.spec.anchor.schedule.epochs
        if done != epochs:
            found.append(
                f"{run.path / EPOCHS}: ends with epoch {done} of the student, the anchor has {epochs} and the record "
                f"says the run is ok; {_RESTORE}"
            )
    return found


def _accuracies(run: Run, reports: Sequence[EpochReport], said: Accuracy, images: int | None) -> Iterator[str]:
    path = run.path / RECORD
    seen = [report.test_accuracy for report in reports if report.test_accuracy is not None]
    tail = seen[-TAIL:] or [said.last]
    tolerated = 100 * max(TURNED, TURNED_SHARE * images) / images if images else 100.0
    if seen and abs(seen[-1] - said.last) > tolerated + 1e-9:
        yield f"{path}: accuracy.last is {said.last}, the last epoch in {EPOCHS} has {seen[-1]}; {_RESTORE}"
    if said.best != (best := max([*seen, said.last])):
        yield f"{path}: accuracy.best is {said.best}, the epochs and accuracy.last give {best}; {_RESTORE}"
    if abs(said.last5_mean - sum(tail) / len(tail)) > 1e-9:
        yield f"{path}: accuracy.last5_mean is {said.last5_mean}, {EPOCHS} gives {sum(tail) / len(tail)}; {_RESTORE}"


def _table(bundle: Bundle, run: Run, reports: Sequence[EpochReport]) -> list[str]:
    """Return whether the table beside the reports, which older runs do not have, is another one."""
    path = bundle.files.get(f"{FOLDER}/{run.place}/{EPOCH_TABLE}")
    if path is None or path.read_bytes() == epoch_table(reports).encode():
        return []
    return [f"{path}: is not the table of the reports in {EPOCHS}; {_RESTORE}"]
