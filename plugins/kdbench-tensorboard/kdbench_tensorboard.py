"""Curves of kdbench runs in TensorBoard: event files, one folder per run, switched on by KDBENCH_TENSORBOARD=FOLDER."""

from __future__ import annotations

import math
import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kdbench

if TYPE_CHECKING:
    from kdbench.records import EpochReport, Record

SWITCH = "KDBENCH_TENSORBOARD"


class EventFile:
    """One event file of a run; from step ``start`` on it replaces what earlier ones say, or nothing of it if None.

    torch's SummaryWriter writes in a thread; when that dies of a full disk, ``flush`` waits for ever, and the run too.
    """

    def __init__(self, folder: Path, start: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names; the time keeps that of the workers.
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        begun = [] if start is None else [{"step": start, "session_log": SessionLog(status=SessionLog.START)}]
        self._append([{"file_version": "brain.Event:2"}, *begun])

    def write(self, values: dict[str, float | str | None], step: int) -> None:
        """Write what can be shown: finite numbers as scalars, words as text."""
        from torch.utils.tensorboard.summary import scalar, text

        known = {k: v for k, v in values.items() if isinstance(v, str) or (v is not None and math.isfinite(v))}
        parts = [(text if isinstance(v, str) else scalar)(k, v) for k, v in known.items()]  # type: ignore[no-untyped-call]
        self._append([{"step": step, "summary": part} for part in parts])

    def _append(self, events: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(Event(wall_time=time.time(), **event).SerializeToString())


class Board:
    """The event files this process writes; one worker trains several runs at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, EventFile] = {}
        self.steps: dict[str, int] = {}  # the next one of each run

    def write(self, run_id: str, values: dict[str, float | str | None], step: int, start: int | None) -> None:
        """Write values of a run, into a new file after a restart or an error."""
        if run_id not in self.files or (start is not None and start < self.steps[run_id]):
            self.files[run_id] = EventFile(self.root / run_id, start)
        try:
            self.files[run_id].write(values, step)
        except BaseException:
            del self.files[run_id]  # it may end in half a record, behind which nothing would be read
            raise
        self.steps[run_id] = step + 1

    def end(self, record: Record) -> None:
        """Write the final numbers, one step behind the last epoch."""
        values = {f"final/{name}": value for name, value in record.numbers().items()}
        status = f"{record.status} {record.reason}".strip()
        self.write(record.run_id, {**values, "final/status": status}, self.steps.get(record.run_id, 0), None)
        del self.files[record.run_id]


@cache
def board(root: str) -> Board:
    """Return the board of this process."""
    return Board(Path(root))


@kdbench.hookimpl
def kdbench_epoch_ended(report: EpochReport) -> None:
    """Draw a point of every curve."""
    if root := os.environ.get(SWITCH):
        values = {name.replace(".", "/", 1): value for name, value in report.named().items()}
        board(root).write(report.run_id, values, report.number, start=report.number)


@kdbench.hookimpl
def kdbench_run_finished(record: Record) -> None:
    """Write the result."""
    if root := os.environ.get(SWITCH):
        board(root).end(record)
