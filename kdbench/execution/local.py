"""The local engine: one subprocess per job, so that a plugin can bring down only its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdbench.engine import Engine
from kdbench.execution.children import Children
from kdbench.execution.events import Event
from kdbench.execution.jobs import Ended, Job, Settings
from kdbench.execution.seam import Opening
from kdbench.hooks import hookimpl


def free_slot(devices: Sequence[str], taken: Sequence[str]) -> str:
    """Return the device with the fewest workers, the first of several."""
    return min(devices, key=taken.count)


class LocalExecutor:
    """Runs jobs as child processes.

    Args:
        settings: Where and how.
        on_event: Sees the events of all workers, from :meth:`wait`.
        patience: Seconds without an event after which a worker hangs and is killed; 0 = wait for ever.
    """

    def __init__(self, settings: Settings, on_event: Callable[[Event], None], patience: float = 0.0) -> None:
        self.settings = settings
        self._workers: Children[tuple[Job, str]] = Children(on_event, patience)

    def submit(self, job: Job) -> None:
        """Start a job, on the device that has the fewest."""
        device = free_slot(self.settings.devices, [device for _, device in self._workers.running])
        self._workers.start(job.command(self.settings, device), (job, device))

    def knows(self, job: Job) -> bool:  # noqa: ARG002
        """Return False: what another command has started is not seen from here."""
        return False

    @property
    def running(self) -> int:
        """Number of jobs under way."""
        return len(self._workers.running)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Wait for the next job to end, passing on events meanwhile."""
        if (ended := self._workers.wait(seconds)) is None:
            return None
        (job, _), exit_code, words = ended
        return Ended(job, exit_code, words)

    def cancel(self) -> None:
        """Ask all jobs to save and stop; :meth:`wait` then returns them. Asked again, they stop at once."""
        self._workers.cancel()

    def close(self) -> None:
        """Nothing outlives its jobs."""


def _open(opening: Opening) -> LocalExecutor:
    return LocalExecutor(opening.settings, opening.on_event, opening.patience)


@hookimpl
def kdbench_executors() -> list[Engine]:
    """Return the engine."""
    return [Engine("local", "one process per job on this machine, spread over its devices", _open)]
