"""The starts of a run: noted on disk as they begin and end, so that even a killed one is in the record."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from kdbench.records import Attempt
from kdbench.store import RunFolder
from kdbench.training.safe_mode import Settings

ATTEMPTS = "attempts.json"
Attempts = tuple[Attempt, ...]


def begin(folder: RunFolder, settings: Settings) -> Attempts:
    """Note the start of an attempt and return all so far, this one last."""
    attempts = (
        *earlier(folder),
        Attempt(started_at=now(), ended_at="", outcome="running", settings=dict(settings)),
    )
    write(folder, attempts)
    if folder.lease is not None:
        folder.lease.attempt = len(attempts)
    return attempts


def earlier(folder: RunFolder) -> Attempts:
    """Return the attempts noted so far; one without an end was killed."""
    path = folder.path / ATTEMPTS
    found: list[Attempt] = []
    if path.exists():
        # Half-written by nobody we know, or foreign: the history is a courtesy.
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            found = [Attempt.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8"))]
    return tuple(a if a.ended_at else a.model_copy(update={"ended_at": now(), "outcome": "killed"}) for a in found)


def end(folder: RunFolder, attempts: Attempts, outcome: str, *, from_epoch: int = 0, retry_sha256: str = "") -> None:
    """Note how the running attempt ended.

    Args:
        folder: The run's folder.
        attempts: All starts, the running one last.
        outcome: How it ended.
        from_epoch: Where it had gone on.
        retry_sha256: Hash of the configuration that is to be started once more with safe settings; empty = it is not.
    """
    said = {"ended_at": now(), "outcome": outcome, "from_epoch": from_epoch, "retry_sha256": retry_sha256}
    write(folder, (*attempts[:-1], attempts[-1].model_copy(update=said)))


def write(folder: RunFolder, attempts: Sequence[Attempt]) -> None:
    """Write the attempts of an unfinished run."""
    text = json.dumps([attempt.model_dump(mode="json") for attempt in attempts], indent=2)
    folder.write(ATTEMPTS, text + "\n")
    folder.push()


def forget(folder: RunFolder) -> None:
    """Remove the file: the attempts are in the record."""
    (folder.path / ATTEMPTS).unlink(missing_ok=True)


def now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
