"""Inside a worker: signals, the parent's death, and events on standard output."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict

from kdbench.execution.events import Event, of_epoch
from kdbench.records import EpochReport
from kdbench.training.trainer import Progress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


class StopFlag:
    """Set by the first stop signal; the trainer finishes its step, saves, and leaves."""

    def __init__(self) -> None:
        self.stopped = False

    def install(self) -> None:
        """Handle the stop signals, and on Linux the death of the driver, too."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        parent = os.environ.get("KDBENCH_PARENT")
        if parent and sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != int(parent):  # it died before we asked
                self.stopped = True

    def __call__(self) -> bool:
        return self.stopped

    def _handle(self, number: int, _frame: object) -> None:
        if self.stopped:
            # Asked before, and the step is not over: a plugin hangs. The default action ends the process at once;
            # what was saved at the last epoch is safe.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stopped = True


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
