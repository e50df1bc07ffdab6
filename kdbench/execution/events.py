"""What a worker tells its driver: one JSON object a line on standard output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from kdbench.records import EpochReport, Record, StepReport

Kind = Literal["progress", "phase", "epoch", "record", "teacher", "warning"]


@dataclass(frozen=True)
class Event:
    """Something a watcher may want to know.

    Args:
        kind: What happened.
        data: Its values, JSON types only.
    """

    kind: Kind
    data: dict[str, Any]

    def to_line(self) -> str:
        """Return the event as one line."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    @staticmethod
    def from_line(line: str) -> Event | None:
        """Return the event of a line, or None for anything else a plugin may have printed."""
        try:
            tree = json.loads(line)
            kind, data = tree["kind"], tree["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return Event(kind, data) if kind in get_args(Kind) and isinstance(data, dict) else None


def of_phase(report: StepReport) -> Event:
    """Return the event of a phase's first step."""
    return Event("phase", report.model_dump(mode="json"))


def of_epoch(report: EpochReport) -> Event:
    """Return the event of a finished epoch."""
    return Event("epoch", report.model_dump(mode="json"))


def of_record(record: Record) -> Event:
    """Return the event of a finished run."""
    accuracy = record.accuracy.last if record.accuracy else None
    return Event(
        "record",
        {"run_id": record.run_id, "status": record.status, "reason": record.reason, "accuracy": accuracy},
    )
