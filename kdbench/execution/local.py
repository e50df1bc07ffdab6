"""The local engine: one subprocess per job, so that a plugin can bring down only its own."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdbench.execution.events import Event
from kdbench.execution.jobs import Ended, Job, Settings

LAST_WORDS_SECONDS = 5.0  # how long to read on after a worker's end
KEPT_LINES = 40  # of a worker's standard error, for the message when it dies without one of its own
LONGEST_LINE = 2**16  # characters; a plugin that prints without end must not fill the driver's memory
LOOK_SECONDS = 1.0  # how often silent workers are looked for


@dataclass(eq=False)
class Handle:
    """A job that was submitted."""

    job: Job
    device: str
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    heard: float = field(default_factory=time.monotonic)  # its last event
    asked: bool = False  # to stop
    silent: bool = False  # for too long

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def free_slot(devices: Sequence[str], taken: Sequence[str]) -> str:
    """Return the device with the fewest workers, the first of several."""
    return min(devices, key=taken.count)


class LocalExecutor:
    """Runs jobs as child processes.

    Args:
        settings: Where and how.
        on_event: Sees the events of all workers, from :meth:`wait`.
        patience: Seconds without an event after which a worker hangs and is killed; 0 = wait for ever. Training sends
            one about once a second.
    """

    def __init__(self, settings: Settings, on_event: Callable[[Event], None], patience: float = 0.0) -> None:
        self.settings, self.on_event, self.patience = settings, on_event, patience
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
            if self.patience:
                self._kill_silent()
            try:
                item = self._queue.get(timeout=LOOK_SECONDS if self.patience else None)
            except queue.Empty:
                continue
            if isinstance(item, Event):
                self.on_event(item)
                continue
            self._running.remove(item)
            words = "".join(item.errors).strip()
            if item.silent:
                words += f"\nit showed no progress for {self.patience / 60:g} minutes (--timeout)"
            return Ended(item.job, item.process.wait(), words)

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        for handle in self._running:
            if handle.asked:  # one that hangs in native code hears no signal but this
                handle.kill()
            else:
                handle.process.send_signal(signal.SIGTERM)
            handle.asked = True

    def _kill_silent(self) -> None:
        for handle in self._running:
            if time.monotonic() - handle.heard > self.patience:
                handle.silent = True
                handle.kill()

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
            while line := lines.readline(LONGEST_LINE):
                if (event := Event.from_line(line)) is not None:
                    handle.heard = time.monotonic()
                    self._queue.put(event)

    @staticmethod
    def _errors(handle: Handle) -> None:
        assert handle.process.stderr is not None
        with handle.process.stderr as lines:
            while line := lines.readline(LONGEST_LINE):
                handle.errors.append(line)
