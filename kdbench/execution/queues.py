"""What a queue is: where jobs wait and run, out of sight; and how jobs are known in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from kdbench.execution.jobs import Job


class State(Enum):
    """What a queue says of a job that is in it."""

    WAITING = "waiting"
    RUNNING = "running"


@dataclass(frozen=True)
class Ticket:
    """A job's place in a queue.

    Args:
        folder: Folder of the files of all jobs that were handed over together.
        index: Which of them it is, from 0.
    """

    folder: Path
    index: int

    def path(self, suffix: str) -> Path:
        """Return a file of the job."""
        return self.folder / f"{self.index}{suffix}"


class Queue(Protocol):
    """Where jobs wait and run."""

    out: str  # suffix of the files with events
    err: str  # suffix of the files with what else is said
    answers: bool  # whether it has answered the last look; else that has returned what was seen before

    def takes(self, room: int) -> int:
        """Return how many jobs it takes at once if so many of them may run; it starts the others by itself."""
        ...

    def turn(self) -> AbstractContextManager[object]:
        """Keep other commands from handing over the same jobs meanwhile."""
        ...

    def owners(self) -> Mapping[str, Ticket]:
        """Return which job in the queue does a run, or makes a teacher; see :func:`subjects`."""
        ...

    def submit(self, jobs: Sequence[Job], at_once: int) -> list[Ticket]:
        """Take jobs, of which so many may run at a time."""
        ...

    def look(self) -> Mapping[Ticket, State]:
        """Return the jobs that are waiting or running."""
        ...

    def outcome(self, ticket: Ticket) -> int | None:
        """Return the exit code of a job that has left the queue, or None if it has left none."""
        ...

    def fate(self, ticket: Ticket) -> tuple[bool, str]:
        """Return whether a job that has left the queue is not to be put back, and its end in words.

        It is not if somebody cancelled it, or its worker never began: others would not, either.
        """
        ...

    def stop(self, tickets: Sequence[Ticket]) -> None:
        """Let jobs that wait never start, and those that run save and stop."""
        ...

    def kill(self, tickets: Sequence[Ticket]) -> None:
        """End jobs at once."""
        ...


def subjects(job: Job) -> tuple[str, ...]:
    """Return what a job does in words that no other job has: its run ids, or the arguments that make its teacher."""
    return job.run_ids or (" ".join(job.arguments),)


def owner_of(job: Job, owners: Mapping[str, Ticket]) -> Ticket | None:
    """Return which job in the queue does this one, or a part of it."""
    return next((owners[subject] for subject in subjects(job) if subject in owners), None)
