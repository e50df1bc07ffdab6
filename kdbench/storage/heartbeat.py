"""The heartbeat of a run: who is training it, how far it is, and that this was so a moment ago."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kdbench.config.schema import Section
from kdbench.errors import ConfigError
from kdbench.records import Corrupt, parse_bytes
from kdbench.storage.owner import Owner
from kdbench.storage.shelf import Shelf

HEARTBEAT = "heartbeat.json"
INTERVAL_VARIABLE = "KDBENCH_HEARTBEAT"  # seconds between two beats, instead of:
INTERVAL = 5.0
STALE_BEATS = 12  # beats that may fail to come before a run counts as abandoned


def _moment(text: str) -> str:
    """Return a time as it is written; raises ValueError unless it is one, with its time zone."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without a time zone")
    return text


Share = Annotated[float, Field(ge=0, le=1)]
Moment = Annotated[str, AfterValidator(_moment)]


class Reached(Section):
    """How far a run is.

    Args:
        phase: The running phase; empty before the first step.
        epoch: Its epoch, from 0.
        epochs: Epochs of the phase.
        within: Share of the epoch that is done.
        done: Share of all epochs of the run, over its phases, that are done.
    """

    phase: str = ""
    epoch: int = 0
    epochs: int = 0
    within: Share = 0.0
    done: Share = 0.0


class Heartbeat(Section):
    """What ``heartbeat.json`` says; it is there only while a process is at the run. Times are UTC, ISO 8601.

    Args:
        lease: Number of the claim; one that is taken over from another has a higher one.
        owner: Who is at it.
        attempt: Which start of the run this is, from 1; 0 while nothing is trained.
        started_at: When it was claimed.
        beaten_at: When this was written, by the owner's clock.
        moved_at: When the progress last changed, by the owner's clock.
        interval: Seconds between two beats.
        progress: How far it is.
        share_at_start: Share of all epochs that was done when this start began to train.
    """

    schema_version: Literal[1] = 1
    lease: int
    owner: Owner
    attempt: int = 0
    started_at: Moment
    beaten_at: Moment
    moved_at: Moment
    interval: float = Field(gt=0, allow_inf_nan=False)
    progress: Reached = Reached()
    share_at_start: Share | None = None

    @property
    def limit(self) -> float:
        """Seconds without a beat after which the run counts as abandoned."""
        return STALE_BEATS * self.interval

    def age(self, now: datetime | None = None) -> float:
        """Return the seconds since the last beat, by this machine's clock against the owner's; at least 0."""
        return max(0.0, ((now or datetime.now(UTC)) - datetime.fromisoformat(self.beaten_at)).total_seconds())


def read_heartbeat(shelf: Shelf) -> Heartbeat | None:
    """Return the heartbeat of a run; None if nobody is at it, or if the file is foreign.

    Raises:
        StoreError: If it cannot be read, or a newer kdbench wrote it.
    """
    data = shelf.read(HEARTBEAT)
    try:
        return None if data is None else parse_bytes(Heartbeat, data, f"{shelf.label}/{HEARTBEAT}")
    except Corrupt:
        return None  # a courtesy: whoever is at the run writes the next one


def interval() -> float:
    """Return the seconds between two beats of this process.

    Raises:
        ConfigError: If the environment names something else than a positive number.
    """
    said = os.environ.get(INTERVAL_VARIABLE) or str(INTERVAL)
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{INTERVAL_VARIABLE}={said}: not a number of seconds above 0; correct it, or leave it out")
    return seconds
