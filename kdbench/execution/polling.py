"""For engines whose jobs are in a queue, out of sight: they are handed over, and looked for from time to time.

What such a job prints goes to files, which must be on a file system that this machine and the job's share.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kdbench.errors import StoreError
from kdbench.execution.children import KEPT_LINES, LONGEST_LINE
from kdbench.execution.events import Event
from kdbench.execution.held import left
from kdbench.execution.jobs import STOPPED, Ended, Job
from kdbench.execution.queues import Queue, State, Ticket, owner_of, subjects
from kdbench.execution.seam import Opening

REFUSED = 4  # exit code of a job that is not to be put back in the queue unless the user says so
LAST_LOOKS = 3  # at a job that has left its queue, for what it has written to come into sight
ASKED_ABOUT = 20  # jobs that wait and of which the store is asked, at each look, whether anything is left to do
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Watched:
    """A job in the queue.

    Args:
        job: The job.
        ticket: Where it is.
        same: Whether what is in the queue is this very job; else one that has some of its runs.
        offset: How far its events were read, in bytes.
        heard: When it showed a sign of life.
        asked: Its state when it was asked to stop.
        silent: Whether it was killed for not showing any.
        missed: How often it was looked for after it had left the queue.
        needless: Whether it was taken out of the queue because nothing was left for it to do.
        asked_about: When the store was asked that, as :func:`time.monotonic` says it.
    """

    job: Job
    ticket: Ticket
    same: bool = True
    offset: int = 0
    heard: float = field(default_factory=time.monotonic)
    asked: State | None = None
    silent: bool = False
    missed: int = 0
    needless: bool = False
    asked_about: float = float("-inf")

    def news(self, suffix: str) -> Iterator[Event]:
        """Return the events that are new in its file."""
        with contextlib.suppress(FileNotFoundError), self.ticket.path(suffix).open("rb") as lines:
            lines.seek(self.offset)
            while (line := lines.readline(LONGEST_LINE)).endswith(b"\n") or len(line) == LONGEST_LINE:
                self.offset += len(line)
                if (event := Event.from_line(line.decode(errors="replace"))) is not None:
                    yield event

    def words(self, suffix: str) -> str:
        """Return the last lines of a file of it, none if there is none."""
        with contextlib.suppress(FileNotFoundError), self.ticket.path(suffix).open("rb") as lines:
            lines.seek(max(0, self.ticket.path(suffix).stat().st_size - LONGEST_LINE))
            return b"".join(lines.readlines()[-KEPT_LINES:]).decode(errors="replace").strip()
        return ""


class QueueExecutor:
    """Runs jobs in a queue.

    A job that is in the queue already, because an earlier or another command handed it over, is watched, not handed
    over again.

    Args:
        queue: The queue.
        opening: What the engine was opened with.
        seconds: Time between two looks.
    """

    def __init__(self, queue: Queue, opening: Opening, seconds: float) -> None:
        self.queue, self.opening, self.seconds = queue, opening, seconds
        self._fresh: list[Job] = []
        self._watched: list[Watched] = []
        self._ended: deque[Ended] = deque()
        self._stopping = False
        self._owners: Mapping[str, Ticket] = {}
        self._asked_owners = float("-inf")

    def knows(self, job: Job) -> bool:
        """Return whether the job is in the queue; between two looks that does not change."""
        if time.monotonic() - self._asked_owners > self.seconds:
            self._owners, self._asked_owners = self.queue.owners(), time.monotonic()
        return owner_of(job, self._owners) is not None

    def submit(self, job: Job) -> None:
        """Keep a job for the next look, when all that came together are handed over together."""
        self._fresh.append(job)

    @property
    def running(self) -> int:
        """Number of jobs that were submitted and not waited for."""
        return len(self._fresh) + len(self._watched) + len(self._ended)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Wait for the next job to end, passing on events meanwhile."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self._ended:
            self._look()
            if not self._ended:
                if until is not None and time.monotonic() >= until:
                    return None
                time.sleep(self.seconds)
        return self._ended.popleft()

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        self._fresh.clear()
        tickets = [watched.ticket for watched in self._watched]
        if self._stopping:
            self.queue.kill(tickets)
        else:
            self.queue.stop(tickets)
        self._stopping = True

    def close(self) -> None:
        """Jobs that are not waited for go on."""

    def _look(self) -> None:
        if self._fresh:
            self._hand_over()
        states = self.queue.look()
        for watched in list(self._watched):
            state = states.get(watched.ticket)
            events = list(watched.news(self.queue.out))
            for event in events:
                self.opening.on_event(event)
            if events or state is not State.RUNNING:
                watched.heard = time.monotonic()
            if state is None:
                self._end(watched)
            else:
                self._urge(watched, state)
        if not self._stopping:
            self._drop_needless(states)

    def _drop_needless(self, states: Mapping[Ticket, State]) -> None:
        """Take out of the queue what waits there for nothing: its runs were cancelled, or others have done them.

        A few jobs at each look, those first that were asked about longest ago: it costs requests for each run, and a
        job that begins before its turn finds out for itself.
        """
        waiting = [
            watched
            for watched in self._watched
            if watched.same and watched.job.run_ids and states.get(watched.ticket) is State.WAITING
        ]
        needless = []
        for watched in heapq.nsmallest(ASKED_ABOUT, waiting, key=lambda watched: watched.asked_about):
            watched.asked_about = time.monotonic()
            with contextlib.suppress(StoreError):  # it may answer next time
                if not left(watched.job, self.opening.settings):
                    needless.append(watched)
        if needless:
            self.queue.stop([watched.ticket for watched in needless])
        for watched in needless:
            watched.needless = True

    def _hand_over(self) -> None:
        """Hand over what has room: all of it, where the queue starts jobs by itself, but no more run at a time."""
        with self.queue.turn():
            owners = self.queue.owners()
            here = {job.arguments for job in self._fresh if owner_of(job, owners)}
            if here:
                _log.warning("%d jobs are in the queue already; they are watched, not submitted again", len(here))
                self._watched += [self._adopted(job, owners) for job in self._fresh if job.arguments in here]
                self._fresh = [job for job in self._fresh if job.arguments not in here]
            room = self.opening.jobs - len({watched.ticket for watched in self._watched})
            jobs = self._fresh[: max(0, self.queue.takes(room))]
            if jobs:
                tickets = self.queue.submit(jobs, room)
                self._watched += [Watched(job, ticket) for job, ticket in zip(jobs, tickets, strict=True)]
                self._fresh = self._fresh[len(jobs) :]

    def _adopted(self, job: Job, owners: Mapping[str, Ticket]) -> Watched:
        """Return a job that is in the queue; what it has said so far was for another command."""
        ticket = owner_of(job, owners)
        assert ticket is not None
        same = set(subjects(job)) == {subject for subject, owner in owners.items() if owner == ticket}
        path = ticket.path(self.queue.out)
        return Watched(job, ticket, same, path.stat().st_size if path.exists() else 0)

    def _urge(self, watched: Watched, state: State) -> None:
        """Stop what is to be stopped: a job that waited when it was asked may have started since."""
        if self._stopping and watched.asked is not state:
            self.queue.stop([watched.ticket])
            watched.asked = state
        patience = self.opening.patience
        if patience and state is State.RUNNING and time.monotonic() - watched.heard > patience:
            watched.silent, watched.heard = True, time.monotonic()
            self.queue.kill([watched.ticket])

    def _end(self, watched: Watched) -> None:
        code = self.queue.outcome(watched.ticket)
        if code is None and not self.queue.answers:
            return  # what is known of the queue is old, and how the job ended cannot be asked
        watched.missed += 1
        if code is None and watched.missed < LAST_LOOKS:
            return
        self._watched.remove(watched)
        self._ended.append(self._judged(watched, code))

    def _judged(self, watched: Watched, code: int | None) -> Ended:
        """Return how a job ended. A part of another job is tried again, and so is what was lost with its machine."""
        job, words = watched.job, watched.words(self.queue.err)
        if watched.silent:
            return Ended(
                job, -signal.SIGKILL, f"{words}\nit showed no progress for {self._minutes} minutes (--timeout)"
            )
        if code is not None and code != STOPPED:
            return Ended(job, code if watched.same else STOPPED, words)
        if self._stopping or watched.needless:
            return Ended(job, STOPPED, words)
        over, end = self.queue.fate(watched.ticket)
        if over:
            return Ended(job, REFUSED, f"kdbench: {job.name}: {end}; start the same command again to go on")
        return Ended(job, -signal.SIGKILL if code is None else code, f"{words}\n{end}".strip())

    @property
    def _minutes(self) -> str:
        return f"{self.opening.patience / 60:g}"
