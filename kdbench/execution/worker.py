"""Inside a worker: signals, the parent's death, and events on standard output."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from kdbench.execution.events import Event, of_epoch
from kdbench.records import EpochReport
from kdbench.training.trainer import Progress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
SAME_REQUEST_SECONDS = 1.0  # a scheduler may signal every process of a job, and the worker's parent passes the same on


class StopFlag:
    """Set by the first stop signal; the trainer finishes its step, saves, and leaves."""

    def __init__(self) -> None:
        self.stopped = False
        self._asked = float("-inf")

    def install(self, orphaned: signal.Signals = signal.SIGTERM) -> None:
        """Handle the stop signals, and on Linux the death of the parent, too.

        Args:
            orphaned: The signal that its death sends.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        follow_parent(os.environ.get("KDBENCH_PARENT"), orphaned)

    def __call__(self) -> bool:
        return self.stopped

    def _handle(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.stopped and now - self._asked > SAME_REQUEST_SECONDS:
            # Asked before, and the step is not over: a plugin hangs. The default action ends the process at once;
            # what was saved at the last epoch is safe.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self.stopped:
            self._asked = now
        self.stopped = True


def follow_parent(parent: str | None, orphaned: signal.Signals) -> None:
    """Ask Linux for a signal when the parent dies; it comes at once if that has happened already.

    Args:
        parent: Process id of the parent, or None for a process that may outlive it.
        orphaned: The signal.
    """
    if parent and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, orphaned, 0, 0, 0)
        if os.getppid() != int(parent):  # it died before we asked
            signal.raise_signal(orphaned)


class EventLog(logging.Handler):
    """Sends warnings to the driver, which shows them; on a worker's standard error nobody would see them."""

    def emit(self, record: logging.LogRecord) -> None:
        emit(Event("warning", {"message": record.getMessage()}))


def emit(event: Event) -> None:
    """Write an event for the driver; a driver that is gone is no reason to lose the run."""
    try:
        sys.stdout.write(event.to_line())
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 (for the rest of the process)


def epoch_emitter(send: Callable[[Event], None]) -> Callable[[EpochReport], None]:
    """Return an observer of epochs that sends events."""
    return lambda report: send(of_epoch(report))


def progress_emitter(send: Callable[[Event], None]) -> Callable[[Progress], None]:
    """Return an observer of progress that sends events."""
    return lambda progress: send(Event("progress", asdict(progress)))
