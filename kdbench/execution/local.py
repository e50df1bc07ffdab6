"""The local engine: one subprocess per job, so that a plugin can bring down only its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kdbench.execution.events import Event
from kdbench.execution.jobs import Job, Settings

KEPT_LINES = 40  # of a worker's standard error, for the message when it dies without one of its own


@dataclass(eq=False)
class Handle:
    """A job that was submitted."""

    job: Job
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


@dataclass(frozen=True)
class Ended:
    """A job that ended. The exit code is a hint; the store says what was done.

    Args:
        job: The job.
        exit_code: Of its process; negative = the signal that ended it.
        error: Last lines of its standard error.
    """

    job: Job
    exit_code: int
    error: str


class LocalExecutor:
    """Runs jobs as child processes.

    Args:
        settings: Where and how.
        on_event: Sees the events of all workers, from :meth:`wait`.
    """

    def __init__(self, settings: Settings, on_event: Callable[[Event], None]) -> None:
        self.settings, self.on_event = settings, on_event
        self._queue: queue.Queue[Event | Handle] = queue.Queue()
        self._running: list[Handle] = []

    def submit(self, job: Job) -> Handle:
        """Start a job."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "KDBENCH_PARENT": str(os.getpid())}
        process = subprocess.Popen(
            job.command(self.settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        handle = Handle(job, process)
        self._running.append(handle)
        threading.Thread(target=self._read, args=(handle,), daemon=True).start()
        return handle

    @property
    def running(self) -> int:
        """Number of jobs under way."""
        return len(self._running)

    def wait(self) -> Ended:
        """Wait for the next job to end, passing on events meanwhile."""
        while True:
            item = self._queue.get()
            if isinstance(item, Event):
                self.on_event(item)
                continue
            self._running.remove(item)
            return Ended(item.job, item.process.wait(), "".join(item.errors).strip())

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them."""
        for handle in self._running:
            handle.process.send_signal(signal.SIGTERM)

    def _read(self, handle: Handle) -> None:
        errors = threading.Thread(target=self._read_errors, args=(handle,), daemon=True)
        errors.start()
        assert handle.process.stdout is not None
        with handle.process.stdout as lines:
            for line in lines:
                if (event := Event.from_line(line)) is not None:
                    self._queue.put(event)
        errors.join()
        self._queue.put(handle)

    @staticmethod
    def _read_errors(handle: Handle) -> None:
        assert handle.process.stderr is not None
        with handle.process.stderr as lines:
            handle.errors.extend(lines)
