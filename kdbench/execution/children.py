"""Worker processes of this machine: started, listened to, stopped. For engines, and for what engines run elsewhere.

Imports nothing that takes long: on other machines this is all that stays beside a worker.
"""

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
from typing import Generic, TypeVar

from kdbench.execution.events import Event

LAST_WORDS_SECONDS = 5.0  # how long to read on after a worker's end
KEPT_LINES = 40  # of a worker's standard error, for the message when it dies without one of its own
LONGEST_LINE = 2**16  # characters; a plugin that prints without end must not fill the driver's memory
LOOK_SECONDS = 1.0  # how often silent workers are looked for, and signals heard that others only pretend to send
T = TypeVar("T")


@dataclass(eq=False)
class Child(Generic[T]):
    """A worker process, and what it was started for."""

    purpose: T
    process: subprocess.Popen[str]
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    heard: float = field(default_factory=time.monotonic)  # its last event
    asked: bool = False  # to stop
    silent: bool = False  # for too long

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Children(Generic[T]):
    """Worker processes, each started for a purpose.

    Args:
        on_event: Sees the events of all of them, from :meth:`wait`.
        patience: Seconds without an event after which a worker hangs and is killed; 0 = wait for ever. Training sends
            one about once a second.
    """

    def __init__(self, on_event: Callable[[Event], None], patience: float = 0.0) -> None:
        self.on_event, self.patience = on_event, patience
        self._queue: queue.Queue[Event | Child[T]] = queue.Queue()
        self._running: list[Child[T]] = []

    def start(self, words: Sequence[str], purpose: T) -> None:
        """Start a worker.

        Args:
            words: Its command line.
            purpose: What :meth:`wait` returns with its end.
        """
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", "KDBENCH_PARENT": str(os.getpid())},
            start_new_session=True,  # Ctrl-C is for the driver, which asks each worker once
        )
        child = Child(purpose, process)
        self._running.append(child)
        threading.Thread(target=self._watch, args=(child,), daemon=True).start()

    @property
    def running(self) -> list[T]:
        """What those under way were started for."""
        return [child.purpose for child in self._running]

    def wait(self, seconds: float | None = None) -> tuple[T, int, str] | None:
        """Wait for the next one to end, passing on events meanwhile.

        Args:
            seconds: About how long; None = until one ends.

        Returns:
            What it was started for, its exit code (negative = the signal that ended it), and the last lines of its
            standard error; None if none has ended in this time.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while until is None or time.monotonic() < until:
            if self.patience:
                self._kill_silent()
            try:
                item = self._queue.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, Event):
                self.on_event(item)
                continue
            self._running.remove(item)
            words = "".join(item.errors).strip()
            if item.silent:
                words += f"\nit showed no progress for {self.patience / 60:g} minutes (--timeout)"
            return item.purpose, item.process.wait(), words
        return None

    def cancel(self) -> None:
        """Ask all to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        for child in self._running:
            if child.asked:  # one that hangs in native code hears no signal but this
                child.kill()
            else:
                child.process.send_signal(signal.SIGTERM)
            child.asked = True

    def _kill_silent(self) -> None:
        for child in self._running:
            if time.monotonic() - child.heard > self.patience:
                child.silent = True
                child.kill()

    def _watch(self, child: Child[T]) -> None:
        """Queue the child when its process has ended, even if a child of it still holds the pipes open."""
        readers = [threading.Thread(target=read, args=(child,), daemon=True) for read in (self._events, self._errors)]
        for reader in readers:
            reader.start()
        child.process.wait()
        for reader in readers:
            reader.join(timeout=LAST_WORDS_SECONDS)
        self._queue.put(child)

    def _events(self, child: Child[T]) -> None:
        assert child.process.stdout is not None
        with child.process.stdout as lines:
            while line := lines.readline(LONGEST_LINE):
                if (event := Event.from_line(line)) is not None:
                    child.heard = time.monotonic()
                    self._queue.put(event)

    @staticmethod
    def _errors(child: Child[T]) -> None:
        assert child.process.stderr is not None
        with child.process.stderr as lines:
            while line := lines.readline(LONGEST_LINE):
                child.errors.append(line)
