"""The local engine: one subprocess per job, so that a plugin can bring down only its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdbench.execution.events import Event
from kdbench.execution.jobs import Ended, Job, Settings

LAST_WORDS_SECONDS = 5.0  # how long to read on after a worker's end
KEPT_LINES = 40  # of a worker's standard error, for the message when it dies without one of its own


@dataclass(eq=False)
class Handle:
    """A job that was submitted."""

    job: Job
    device: str
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


def free_slot(devices: Sequence[str], taken: Sequence[str]) -> str:
    """Return the device with the fewest workers, the first of several."""
    return min(devices, key=taken.count)


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

    def submit(self, job: Job) -> None:
        """Start a job, on the device that has the fewest."""
        device = free_slot(self.settings.devices, [handle.device for handle in self._running])
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "KDBENCH_PARENT": str(os.getpid())}
        process = subprocess.Popen(
            job.command(self.settings, device),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver, which asks each worker once
        )
        handle = Handle(job, device, process)
        self._running.append(handle)
        threading.Thread(target=self._watch, args=(handle,), daemon=True).start()

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
            ended = Ended(item.job, item.process.wait(), "".join(item.errors).strip())
            self._running.remove(item)
            return ended

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        for handle in self._running:
            handle.process.send_signal(signal.SIGTERM)

    def _watch(self, handle: Handle) -> None:
        """Queue the handle when its process has ended, even if a child of it still holds the pipes open."""
        readers = [threading.Thread(target=read, args=(handle,), daemon=True) for read in (self._events, self._errors)]
        for reader in readers:
            reader.start()
        handle.process.wait()
        for reader in readers:
            reader.join(timeout=LAST_WORDS_SECONDS)
        self._queue.put(handle)

    def _events(self, handle: Handle) -> None:
        assert handle.process.stdout is not None
        with handle.process.stdout as lines:
            for line in lines:
                if (event := Event.from_line(line)) is not None:
                    self._queue.put(event)

    @staticmethod
    def _errors(handle: Handle) -> None:
        assert handle.process.stderr is not None
        with handle.process.stderr as lines:
            handle.errors.extend(lines)
