"""An engine of the driver whose workers are forked children, some of which are killed."""

from __future__ import annotations

import random
import signal
import time

from board import Place, state
from children import Child

from kdbench.cli.main import cli
from kdbench.errors import KdbenchError
from kdbench.execution.jobs import Ended, Job


class ForkExecutor:
    """Runs jobs as forked children.

    Args:
        place: Where.
        kills: How many workers to kill in their training.
        draws: Decides when.
        patience: Seconds of life of a worker; 0 = for ever.
    """

    def __init__(self, place: Place, kills: int = 0, draws: random.Random | None = None, patience: float = 0.0) -> None:
        self.place, self.kills, self.patience = place, kills, patience
        self.after = (draws or random.Random(0)).randint(2, 30)  # steps
        self.killed = 0
        self._children: list[tuple[Job, Child, float]] = []

    def submit(self, job: Job) -> None:
        """Start a worker."""
        words = job.command(self.place.settings, "cpu")[3:]
        self._children.append((job, self.place.start(lambda: _work(words)), time.monotonic()))

    def knows(self, job: Job) -> bool:  # noqa: ARG002
        """Return that no other command has started it."""
        return False

    @property
    def running(self) -> int:
        """Number of workers."""
        return len(self._children)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Return the first worker that ends; None if none has in this time."""
        until = None if seconds is None else time.monotonic() + seconds
        while until is None or time.monotonic() < until:
            for entry in self._children:
                job, child, started = entry
                if self.killed < self.kills and child.where.visits("training") >= self.after:
                    child.signal(signal.SIGKILL)
                    self.killed += 1
                if self.patience and time.monotonic() - started > self.patience:
                    child.signal(signal.SIGKILL)
                if child.ended():
                    self._children.remove(entry)
                    ended = child.wait()
                    return Ended(job, ended.code, ended.said)
            time.sleep(0.002)
        return None

    def cancel(self) -> None:
        """Ask all to stop."""
        for _, child, _ in self._children:
            child.signal(signal.SIGTERM)


def _work(words: list[str]) -> None:
    try:
        cli.main(words, prog_name="kdbench", standalone_mode=False, obj=state())
    except KdbenchError as error:
        print(f"kdbench: {error}")
        raise SystemExit(error.exit_code) from error
